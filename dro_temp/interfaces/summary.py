"""What a predictor may learn of a row's scores without holding them."""

from collections.abc import Callable

import torch
from torch import Tensor

from dro_temp._typing import Mask, PerRow, Scores
from dro_temp.interfaces.scores import at_least_float32

#: `(weight, shift) -> (scores - shift) @ weight.T`
Project = Callable[[Tensor, "PerRow | None"], Tensor]


class Summary:
    r"""Statistics and projections of each row's scores, computed when they are asked for; all detached.

    A sweep over blocks of rows makes one for each block. Whoever reads a summary instead of the scores can be
    asked without the score matrix ever existing, and gets the same numbers either way.

    Args:
        scores: one row of scores per row.
        mask: True inside the support; None: all outcomes are. Statistics are over the support.
        project: how to project the scores more cheaply than from themselves.

    Example:
        >>> summary = Summary(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> summary.norm, summary.entropy
        (tensor([5., 0.]), tensor([0.5822, 0.6931]))
    """

    def __init__(self, scores: Scores, mask: Mask | None = None, project: Project | None = None) -> None:
        self._scores, self._mask, self._project = at_least_float32(scores).detach(), mask, project

    @property
    def shape(self) -> torch.Size:
        """[n]."""
        return self._scores.shape[:-1]

    @property
    def outcomes(self) -> int:
        """Number of columns."""
        return self._scores.shape[1]

    @property
    def max(self) -> PerRow:
        """Largest score."""
        return self._by_rows(lambda s, inside: _inside(s, inside, -torch.inf).amax(1))

    @property
    def norm(self) -> PerRow:
        """Euclidean norm."""
        return self.norm_about(None)

    def norm_about(self, centre: PerRow | None) -> PerRow:
        """Euclidean norm of the scores minus a number per row."""
        return self._by_rows(
            lambda s, inside, *c: torch.linalg.vector_norm(
                _inside(s - c[0][:, None] if c else s, inside, 0.0), dim=1
            ),
            *(() if centre is None else (centre,)),
        )

    @property
    def mean(self) -> PerRow:
        """Mean."""
        return self._by_rows(lambda s, inside: _inside(s, inside, 0.0).sum(1) / _size(s, inside))

    @property
    def std(self) -> PerRow:
        """Standard deviation, of the scores as a whole population."""
        size = self._by_rows(lambda s, inside: torch.ones_like(s[:, 0]) * _size(s, inside))
        return self.norm_about(self.mean) / size.sqrt()

    @property
    def log_sum_exp(self) -> PerRow:
        """Log-sum-exp at temperature 1."""
        return self._by_rows(lambda s, inside: _inside(s, inside, -torch.inf).logsumexp(1))

    @property
    def entropy(self) -> PerRow:
        """Entropy of the softmax at temperature 1, in nats."""

        def of(s: Tensor, inside: Tensor | None) -> Tensor:
            log_p = _inside(s, inside, -torch.inf).log_softmax(1)
            return -(log_p.exp() * log_p.clamp(min=torch.finfo(s.dtype).min)).sum(1)

        return self._by_rows(of)

    def project(self, weight: Tensor, shift: PerRow | None = None) -> Tensor:
        """`(scores - shift) @ weight.T`, in float32 or better, with gradient to the weight.

        Cheapest where the weight is a parameter of the predictor itself and the scores are products: then it is
        folded into the keys, once for all rows.

        Args:
            weight: [K m].
            shift: subtracted from all scores of a row.
        """
        if self._project is not None:
            return self._project(weight, shift)
        held = self._scores if shift is None else self._scores - shift[:, None]
        return held @ weight.to(held.dtype).T

    def _by_rows(self, of: Callable[..., Tensor], *per_row: PerRow) -> Tensor:
        """A few rows at a time, so that no second block of scores is needed."""
        n, m = self._scores.shape
        budget = 2**20 if self._scores.device.type == "cpu" else 2**26
        step = max(budget // max(m, 1), 1)
        parts = []
        for start in range(0, max(n, 1), step):
            rows = slice(start, start + step)
            inside = None if self._mask is None else self._mask[rows]
            parts.append(of(self._scores[rows], inside, *(x[rows] for x in per_row)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _inside(scores: Tensor, inside: Tensor | None, otherwise: float) -> Tensor:
    return scores if inside is None else scores.masked_fill(~inside, otherwise)


def _size(scores: Tensor, inside: Tensor | None) -> Tensor | int:
    return scores.shape[1] if inside is None else inside.sum(1).to(scores.dtype)
