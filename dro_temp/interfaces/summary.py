"""What a predictor may learn of a row's scores without holding them."""

from collections.abc import Callable

import torch
from torch import Tensor

from dro_temp._typing import Mask, PerRow, Scores
from dro_temp.interfaces.scores import at_least_float32
from dro_temp.kernels.passes import Profile, impossible, profile, projected, row_groups

#: `(weight, shift) -> (scores - shift) @ weight.T`
Project = Callable[[Tensor, "PerRow | None"], Tensor]


class Summary:
    r"""Statistics and projections of each row's scores, computed when they are asked for; all detached.

    A sweep over blocks of rows makes one for each block. Whoever reads a summary instead of the scores can be
    asked without the score matrix ever existing, and gets the same numbers either way.

    Args:
        scores: one row of scores per row.
        mask: True inside the support; None: all outcomes are. Statistics are over the support, and of that over the
            outcomes that can happen: one that scores 9000 or more below the best of its row, such as -inf or a mask of
            -1e4, is taken for impossible.
        project: how to project the scores more cheaply than from themselves.
        profile: how to profile them more cheaply.

    Example:
        >>> summary = Summary(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> summary.norm, summary.entropy
        (tensor([5., 0.]), tensor([0.5822, 0.6931]))
    """

    def __init__(
        self,
        scores: Scores,
        mask: Mask | None = None,
        project: Project | None = None,
        profile: Callable[[], Profile] | None = None,
    ) -> None:
        self._scores, self._mask, self._project = at_least_float32(scores).detach(), mask, project
        self._profiled = profile
        self._found: Profile | None = None

    @property
    def shape(self) -> torch.Size:
        """[n]."""
        return self._scores.shape[:-1]

    @property
    def outcomes(self) -> int:
        """Number of columns."""
        return self._scores.shape[1]

    @property
    def possible(self) -> PerRow:
        """Number of outcomes of each row that can happen, as a floating-point number."""
        return self._profile.count

    @property
    def max(self) -> PerRow:
        """Largest score."""
        return self._profile.top

    @property
    def norm(self) -> PerRow:
        """Euclidean norm."""
        return self.norm_about(None)

    def norm_about(self, centre: PerRow | None) -> PerRow:
        """Euclidean norm of the scores minus a number per row."""
        if self._profiled is not None and self._scores.device.type != "cpu":
            # Kernels for a device read a row faster than several calls would.
            p, mean = self._profile, self._profile.mean
            return p.count.sqrt() * torch.hypot(p.std, mean if centre is None else mean - centre)

        def of(rows: slice) -> PerRow:
            about = self._scores[rows]
            about = about if centre is None else about - centre[rows, None]
            mask = None if self._mask is None else self._mask[rows]
            about = about if mask is None else about.masked_fill(~mask, 0.0)
            banned = impossible(self._scores[rows], mask)
            about = about if banned is None else about.masked_fill(banned, 0.0)
            found: Tensor = torch.linalg.vector_norm(about, dim=1)
            return found

        return torch.cat([of(rows) for rows in row_groups(self._scores)] or [self._scores.new_empty(0)])

    @property
    def mean(self) -> PerRow:
        """Mean."""
        return self._profile.mean

    @property
    def std(self) -> PerRow:
        """Standard deviation, of the scores as a whole population."""
        return self._profile.std

    @property
    def log_sum_exp(self) -> PerRow:
        """Log-sum-exp at temperature 1."""
        return self._profile.top + self._profile.total.log()

    @property
    def entropy(self) -> PerRow:
        """Entropy of the softmax at temperature 1, in nats."""
        return self._profile.total.log() - self._profile.excess

    @property
    def _profile(self) -> Profile:
        # Not a cached_property: its lock, up to Python 3.11, stops torch.compile.
        if self._found is None:
            self._found = profile(self._scores, self._mask) if self._profiled is None else self._profiled()
        return self._found

    def project(self, weight: Tensor, shift: PerRow | None = None) -> Tensor:
        """`(scores - shift) @ weight.T`, in float32 or better, with gradient to the weight.

        Outcomes that cannot happen add nothing.

        Cheapest where the weight is a parameter of the predictor itself and the scores are products: then it is
        folded into the keys, once for all rows.

        Args:
            weight: [K m].
            shift: subtracted from all scores of a row.
        """
        if self._project is not None:
            return self._project(weight, shift)
        return projected(self._scores, weight, shift)
