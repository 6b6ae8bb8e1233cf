"""Statistics and projections of a row's scores, which a predictor can read without the score matrix."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from dro_temp._checks import check_matrix
from dro_temp._tensors import LOW, at_least_float32, product_with_bfloat16, row_groups, sums_in_float32
from dro_temp._typing import Features, Mask, PerRow, Scores
from dro_temp.functional.statistics import ScoreProfile, impossible, projected, score_profile

#: `(weight, shift) -> (scores - shift) @ weight.T`
Project = Callable[[Tensor, "PerRow | None"], Tensor]
#: `(queries, scores) -> temperatures`, for a frozen head's own queries and logits.
Decoder: TypeAlias = Callable[[Features, Scores], PerRow]

# Keys converted to another precision at a time.
_TILE = 8192


class ScoreStatistics:
    r"""Statistics and projections of each row's scores, computed when they are read; all detached.

    Streaming losses build one for each block of rows while its scores are in memory, so that a predictor of statistics
    needs no score matrix, and reads the same numbers either way.

    Args:
        scores: [n m].
        mask: True inside the support; None: everywhere. Statistics are over the outcomes of the support that can
            happen: one that scores 9000 or more below the maximum of its row, such as -inf or a mask of -1e4, cannot.
        project: a cheaper projection than that of the scores themselves, such as a `FoldedProjection`.
        profile: a cheaper way to compute the profile, such as a fused kernel.

    Example:
        >>> statistics = ScoreStatistics(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> statistics.norm, statistics.entropy
        (tensor([5., 0.]), tensor([0.5822, 0.6931]))
    """

    def __init__(
        self,
        scores: Scores,
        mask: Mask | None = None,
        project: Project | None = None,
        profile: Callable[[], ScoreProfile] | None = None,
    ) -> None:
        check_matrix("scores", scores)
        self._given = scores.detach()
        self._mask, self._project = mask, project
        self._compute_profile = profile
        self._profile: ScoreProfile | None = None

    @property
    def _scores(self) -> Scores:
        """In float32 or better, once something reads them: a copy of a block of half precision is large."""
        if self._given.dtype in LOW:
            self._given = at_least_float32(self._given)
        return self._given

    @property
    def shape(self) -> torch.Size:
        """[n]."""
        return self._given.shape[:-1]

    @property
    def outcomes(self) -> int:
        """Number of columns."""
        return self._given.shape[1]

    @property
    def profile(self) -> ScoreProfile:
        """Maximum, sum of exponentials, mean, deviation and number of possible outcomes, from one pass."""
        # Not a cached_property: its lock, up to Python 3.11, stops torch.compile.
        if self._profile is None:
            compute = self._compute_profile
            self._profile = score_profile(self._scores, self._mask) if compute is None else compute()
        return self._profile

    @property
    def possible(self) -> PerRow:
        """Number of outcomes of each row that can happen, as a floating-point number."""
        return self.profile.possible

    @property
    def max(self) -> PerRow:
        """Largest score."""
        return self.profile.row_max

    @property
    def mean(self) -> PerRow:
        """Mean."""
        return self.profile.mean

    @property
    def std(self) -> PerRow:
        """Standard deviation, of the scores as a whole population."""
        return self.profile.std

    @property
    def log_sum_exp(self) -> PerRow:
        """Log-sum-exp at temperature 1."""
        return self.profile.row_max + self.profile.sum_exp.log()

    @property
    def entropy(self) -> PerRow:
        """Entropy of the softmax at temperature 1, in nats."""
        return self.profile.sum_exp.log() - self.profile.mean_excess

    @property
    def norm(self) -> PerRow:
        """Euclidean norm."""
        return self.norm_about(None)

    def norm_about(self, centre: PerRow | None) -> PerRow:
        """Euclidean norm of the scores minus a number per row."""
        if self._compute_profile is not None and self._given.device.type != "cpu":
            # From the profile, which one kernel computes faster than several calls would.
            p, mean = self.profile, self.profile.mean
            return p.possible.sqrt() * torch.hypot(p.std, mean if centre is None else mean - centre)
        norms = []
        for rows in row_groups(self._scores):
            scores, mask = self._scores[rows], None if self._mask is None else self._mask[rows]
            outside = impossible(scores, mask)
            scores = scores if centre is None else scores - centre[rows, None]
            scores = scores if outside is None else scores.masked_fill(outside, 0.0)
            norms.append(torch.linalg.vector_norm(scores, dim=1))
        return torch.cat(norms or [self._scores.new_empty(0)])

    def project(self, weight: Tensor, shift: PerRow | None = None) -> Tensor:
        """`(scores - shift) @ weight.T`, in float32 or better, with gradient to the weight.

        Outcomes that cannot happen add nothing. Cheapest if the weight is a parameter of the predictor itself and the
        scores are products: it is then folded into the keys, once for all rows.

        Args:
            weight: [K m].
            shift: subtracted from all scores of a row.
        """
        if self._project is not None:
            return self._project(weight, shift)
        return projected(self._scores, weight, shift)


class FoldedProjection:
    r"""A projection A of scores that are products, without the scores.

    $$A (W q + c - \sigma 1) = (A W)\, q + A c - \sigma A 1$$

    `A W` costs as much as scoring one row per row of A, once; each row of scores then costs d instead of m
    multiplications per row of A. Outcomes that the bias rules out (see `ScoreStatistics`) add nothing.

    Args:
        keys: W, [m d]; no gradient flows to them.
        bias: c, or None.
        scale: multiplies W q.

    Example:
        >>> import torch
        >>> q, W, A = torch.randn(3, 4), torch.randn(50, 4), torch.randn(2, 50)
        >>> torch.allclose(FoldedProjection(W, None)(q, A), (q @ W.T) @ A.T, atol=1e-4)
        True

    Source: arXiv 2404.04575, the first layer of TempNet over logits.
    """

    def __init__(self, keys: Features, bias: PerRow | None = None, *, scale: float = 1.0) -> None:
        self.scale = scale
        self.keys = keys.detach()
        self.bias = None if bias is None else bias.detach()
        self._banned = None if self.bias is None else impossible(self.bias[None])
        if self.bias is not None and self._banned is not None:
            self.bias = self.bias.masked_fill(self._banned[0], 0.0)
        self._folded: dict[int, tuple[Tensor, int, Tensor]] = {}

    def __call__(self, queries: Features, weight: Tensor, shift: PerRow | None = None) -> Tensor:
        """`(scores - shift) @ weight.T`, [n K].

        Args:
            queries: q, [n d].
            weight: A, [K m].
            shift: subtracted from all scores of a row.
        """
        folded = self._fold(weight)
        queries = queries.to(folded.dtype)
        queries = queries if self.scale == 1.0 else queries * self.scale
        # One call computes product and offset.
        offset = None if self.bias is None else folded[:, -2]
        result = torch.nn.functional.linear(queries, folded[:, :-2], offset)
        return result if shift is None else result - shift[:, None].to(folded.dtype) * folded[:, -1]

    def parts(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(A W, A c, A 1)` for queries that are scaled already."""
        folded = self._fold(weight)
        return folded[:, :-2] * self.scale, folded[:, -2], folded[:, -1]

    def _fold(self, weight: Tensor) -> Tensor:
        """[A W | A c | A 1], [K d + 2], in float32 or better; cached until the weight changes."""
        cached = self._folded.get(id(weight))
        if cached is not None and cached[0] is weight and cached[1] == weight._version:
            return cached[2]
        with torch.no_grad():
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            wide = wide if self._banned is None else wide.masked_fill(self._banned, 0.0)
            folded = wide.new_zeros(len(weight), self.keys.shape[1] + 2)
            if self._fast(wide):
                folded[:, :-2] = product_with_bfloat16(wide, self.keys, out=torch.empty_like(folded[:, :-2]))
            else:
                for tile in self._tiles(wide.dtype):
                    folded[:, :-2].addmm_(wide[:, tile], self.keys[tile].to(wide.dtype))
            if self.bias is not None:
                folded[:, -2] = wide @ self.bias.to(wide.dtype)
            folded[:, -1] = wide.sum(1)
        folded.requires_grad_(weight.requires_grad and torch.is_grad_enabled())
        self._folded[id(weight)] = (weight, weight._version, folded)
        return folded

    def _fast(self, factor: Tensor) -> bool:
        """Whether the device multiplies float32 with bfloat16 keys faster than float32 with float32."""
        low = self.keys.dtype == torch.bfloat16 and factor.dtype == torch.float32
        return low and self.keys.device.type == "cuda" and sums_in_float32(self.keys.device)

    def _tiles(self, dtype: torch.dtype) -> list[slice]:
        """All keys at once, or tiles whose copies in another precision are small."""
        m = len(self.keys)
        step = max(m if self.keys.dtype == dtype else _TILE, 1)
        return [slice(start, min(start + step, m)) for start in range(0, m, step)]

    def folded(self) -> list[tuple[Tensor, Tensor]]:
        """Each folded weight, and its folded form: a leaf that collects gradient."""
        return [(weight, folded) for weight, _, folded in self._folded.values()]

    @torch.no_grad()
    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient of A from that of its folded form."""
        result = gradient.new_empty(len(gradient), len(self.keys))
        if self._fast(gradient):
            product_with_bfloat16(gradient[:, :-2], self.keys.T, out=result)
        else:
            for tile in self._tiles(gradient.dtype):
                torch.mm(gradient[:, :-2], self.keys[tile].to(gradient.dtype).T, out=result[:, tile])
        if self.bias is not None:
            result.addr_(gradient[:, -2], self.bias.to(gradient.dtype))
        result.add_(gradient[:, -1:])
        return result if self._banned is None else result.masked_fill_(self._banned, 0.0)


class FrozenHead(FoldedProjection):
    r"""The weights of a frozen head, with a predictor's projection of its logits folded into them.

    In generation the logits exist anyway; a network's first layer over them, $A z = (A W) h$, then costs a small
    product with the hidden state instead of one as wide as the vocabulary. `hosts.model_head` explains how the
    library's four kinds of head relate.

    Args:
        keys: the head's weight, [m d].
        bias: the head's bias, or None.

    Example:
        >>> import torch, dro_temp as dt
        >>> weight, hidden = torch.randn(500, 16), torch.randn(1, 16)
        >>> tempnet = dt.TempNet.for_logits(500, tau_min=0.1, tau_max=2.0).eval()
        >>> temperatures = tempnet.decoder(FrozenHead(weight))  # built once
        >>> temperatures(hidden, hidden @ weight.T).shape  # called for every token
        torch.Size([1])
    """

    def statistics(self, queries: Features, scores: Scores) -> ScoreStatistics:
        """Statistics of the head's logits.

        Args:
            queries: the head's input, [n d].
            scores: its output, [n m], neither scaled nor capped.
        """
        return ScoreStatistics(scores, project=partial(self, queries))
