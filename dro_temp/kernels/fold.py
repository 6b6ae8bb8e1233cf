"""A linear map of scores that are themselves products: applied to the queries, never to the scores."""

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow
from dro_temp.kernels.passes import impossible
from dro_temp.kernels.products import product


class Fold:
    r"""$A (W q + c - \sigma 1) = (A W)\, q + A c - \sigma A 1$: a projection of scores without the scores.

    `A W` costs as much as scoring one row per line of A, and is made once for all rows; each row then costs d
    instead of m multiplications per line. Outcomes that the bias rules out (see `passes.IMPOSSIBLE_BELOW`) add nothing.

    Args:
        keys: W, [m d]; no gradient flows to them.
        bias: c, or None.
        scale: multiplies W q.

    Example:
        >>> import torch
        >>> q, W, A = torch.randn(3, 4), torch.randn(50, 4), torch.randn(2, 50)
        >>> torch.allclose(Fold(W, None)(q, A), (q @ W.T) @ A.T, atol=1e-4)
        True

    Source: arXiv 2404.04575, the first layer of TempNet over logits.
    """

    def __init__(self, keys: Features, bias: PerRow | None, *, scale: float = 1.0) -> None:
        self.scale = scale
        self.keys = keys.detach()
        self.bias = None if bias is None else bias.detach()
        self._banned = None if self.bias is None else impossible(self.bias[None])
        if self.bias is not None and self._banned is not None:
            self.bias = self.bias.masked_fill(self._banned[0], 0.0)
        self._made: dict[int, tuple[Tensor, int, Tensor]] = {}

    def __call__(self, queries: Features, weight: Tensor, shift: PerRow | None = None) -> Tensor:
        """`(scores - shift) @ weight.T`, [n K].

        Args:
            queries: q, [n d].
            weight: A, [K m].
            shift: subtracted from all scores of a row.
        """
        folded = self._folded(weight)
        # [A W | A c | A 1]: the offset belongs to every row, so that one call does for product and offset.
        offset = None if self.bias is None else folded[:, -2]
        result = torch.nn.functional.linear(self._wide(queries, folded.dtype), folded[:, :-2], offset)
        return result if shift is None else result - shift[:, None].to(folded.dtype) * folded[:, -1]

    def parts(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(A W, A c, A 1)` for queries that are scaled already."""
        folded = self._folded(weight)
        return folded[:, :-2] * self.scale, folded[:, -2], folded[:, -1]

    def _wide(self, queries: Features, dtype: torch.dtype) -> Features:
        queries = queries.to(dtype)
        return queries if self.scale == 1.0 else queries * self.scale

    def _folded(self, weight: Tensor) -> Tensor:
        """[A W | A c | A 1] in float32 or better, made at first use, and again when the weight has moved."""
        known = self._made.get(id(weight))
        if known is not None and known[0] is weight and known[1] == weight._version:
            return known[2]
        with torch.no_grad():
            wide = _at_least_float32(weight)
            wide = wide if self._banned is None else wide.masked_fill(self._banned, 0.0)
            folded = wide.new_zeros(len(weight), self.keys.shape[1] + 2)
            for tile in self._tiles(wide.dtype):
                folded[:, :-2].addmm_(wide[:, tile], self.keys[tile].to(wide.dtype))
            if self.bias is not None:
                folded[:, -2] = wide @ self.bias.to(wide.dtype)
            folded[:, -1] = wide.sum(1)
        folded.requires_grad_(weight.requires_grad and torch.is_grad_enabled())
        self._made[id(weight)] = (weight, weight._version, folded)
        return folded

    def _tiles(self, dtype: torch.dtype) -> list[slice]:
        """All keys at once, or so many that a copy in another precision stays small."""
        m = len(self.keys)
        step = m if self.keys.dtype == dtype else 8192
        return [slice(start, min(start + step, m)) for start in range(0, m, max(step, 1))]

    def folded(self) -> list[tuple[Tensor, Tensor]]:
        """Each weight that was folded, and what it was folded into: a leaf that collects gradient."""
        return [(weight, folded) for weight, _, folded in self._made.values()]

    @torch.no_grad()
    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient of A from that of what it was folded into."""
        result = gradient.new_empty(len(gradient), len(self.keys))
        for tile in self._tiles(gradient.dtype):
            product(gradient[:, :-2], self.keys[tile].to(gradient.dtype).T, result[:, tile])
        if self.bias is not None:
            result.addr_(gradient[:, -2], self.bias.to(gradient.dtype))
        result.add_(gradient[:, -1:])
        return result if self._banned is None else result.masked_fill_(self._banned, 0.0)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
