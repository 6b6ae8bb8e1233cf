"""One sweep over blocks of rows: log-mean-exp, temperatures that depend on the scores, closed-form gradients."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, RowIndex, Scores
from dro_temp.kernels.budget import block_rows
from dro_temp.kernels.gradients import Needs, ProductGradients, multiply_slopes_
from dro_temp.kernels.pair_passes import RowSums
from dro_temp.kernels.passes import NOT_AN_OUTCOME, Profile, Tilted
from dro_temp.kernels.predicted import PredictedTau
from dro_temp.kernels.products import AddUp, Scorer, work_dtype
from dro_temp.kernels.rows import Products, TauOf, tilted_statistics
from dro_temp.kernels.workspace import borrow, give_back

#: `(log_g, tau, rows) -> (dL/dlog_g, dL/dtau)`.
Upstream: TypeAlias = Callable[[PerRow, PerRow, slice], tuple[PerRow, PerRow]]


class RowPasses(Protocol):
    """The passes over a block of scores; the module `passes` is one."""

    def scorer(self, queries: Features, keys: Features) -> Scorer:
        """What makes the scores."""

    @property
    def add_up(self) -> AddUp:
        """What adds up the rows of a block."""

    def tilt_(self, scores: Scores, tau: PerRow, *, excess: bool, factor: torch.dtype) -> Tilted:
        """Exponential tilting; the scores are consumed."""

    def sum_rows(self, scores: Scores, tau: PerRow) -> RowSums:
        """The sums alone; the scores stay."""

    def moments(
        self, scores: Scores, target: RowIndex, target_in_support: bool, wanted: Collection[str]
    ) -> dict[str, PerRow]:
        """Those of max, mean, std and norm that are wanted; the scores stay."""

    def profile(self, scores: Scores) -> Profile:
        """What a network may read of each row; the scores stay."""


@dataclass
class Swept:
    """What a sweep found. Gradients that were not wanted are None."""

    log_g: PerRow
    tau: PerRow
    slope: PerRow  #: dlog_g/dtau
    statistics: dict[str, PerRow] = field(default_factory=dict)
    queries: Tensor | None = None
    keys: Tensor | None = None
    bias: Tensor | None = None
    parameters: list[Tensor | None] = field(default_factory=list)


class Sweep:
    """Rows of products, swept once or several times.

    Args:
        products: what is scored, without a `Scale`.
        tau: temperatures, or how to predict them from a block.
        passes: the passes over a block.
        statistics: what is to be noted on the way.
    """

    def __init__(
        self,
        products: Products,
        tau: PerRow | TauOf,
        passes: RowPasses,
        statistics: frozenset[str] = frozenset(),
    ) -> None:
        self.products, self.tau, self.passes, self.statistics = products, tau, passes, statistics
        self.work = work_dtype(products.queries, products.keys)

    @torch.no_grad()
    def run(
        self,
        needs: Needs,
        upstream: Upstream | None,
        *,
        keep: Scores | None = None,
        kept: Scores | None = None,
    ) -> Swept:
        """Sweep once.

        Args:
            needs: gradients wanted.
            upstream: what comes back for each row; None: one for log_g and nothing for tau.
            keep: takes the scores, for a later sweep.
            kept: scores that an earlier sweep kept.
        """
        p = self.products
        n, m = p.queries.shape[0], p.keys.shape[0]
        rows = block_rows(n, m, self.work, p.queries.device, sums_over_rows=needs.keys)
        new = p.queries.new_empty
        log_g, tau, slope = (new(n, dtype=self.work) for _ in range(3))
        found = Swept(log_g, tau, slope)
        for name in self.statistics:
            found.statistics[name] = new(n, dtype=self.work)
        scorer = self.passes.scorer(p.queries, p.keys)
        gradients = ProductGradients(p, needs, self.work, self.passes.add_up)
        predicted = None
        if not isinstance(self.tau, Tensor):
            predicted = PredictedTau(self.tau, p, needs.parameters, self.passes.profile)
        buffer = borrow("scores", rows, m, p.queries, self.work)
        for start in range(0, n, rows):
            block = slice(start, min(start + rows, n))
            scores = buffer[: block.stop - start]
            if kept is None:
                self._score(block, scorer, scores)
            else:
                scores.copy_(kept[block])
            if keep is not None:
                keep[block] = scores
            self._reduce(block, scores, gradients, predicted, upstream, found)
        give_back("scores", buffer)
        found.queries, found.keys, found.bias = gradients.queries, gradients.keys, gradients.bias
        if predicted is not None and needs.parameters:
            found.parameters = predicted.gradients()
        return found

    def _score(self, block: slice, scorer: Scorer, scores: Scores) -> None:
        p = self.products
        scorer(p.queries[block], scores, p.scale)
        if p.bias is not None:
            # -inf (an outcome that cannot happen) would become NaN when it is weighted by zero.
            scores.add_(p.bias.to(scores.dtype).clamp(min=NOT_AN_OUTCOME))
        if p.transform is not None:
            p.transform.apply_(scores)

    def _tilted(self, scores: Scores, tau: PerRow, gradients: ProductGradients) -> Tilted:
        if not gradients.wanted:  # weights are not read: a frozen host
            sums = self.passes.sum_rows(scores, tau)
            return Tilted(scores, sums.top, sums.total, sums.excess)
        return self.passes.tilt_(scores, tau, excess=not gradients.means, factor=gradients.factor)

    def _reduce(
        self,
        block: slice,
        scores: Scores,
        gradients: ProductGradients,
        predicted: PredictedTau | None,
        upstream: Upstream | None,
        found: Swept,
    ) -> None:
        """Everything after the product; the scores are consumed."""
        p, target = self.products, self.products.target[block].long()
        own = scores.gather(1, target[:, None]).squeeze(1)
        noted = self.passes.moments(scores, target, p.target_in_support, self.statistics)
        if predicted is None:
            assert isinstance(self.tau, Tensor)
            tau = self.tau[block].to(scores.dtype)
        else:
            tau = predicted(block, scores)
        slopes = None
        if p.transform is not None and gradients.wanted:
            slopes = p.transform.slope_(scores.clone())
        if not p.target_in_support:
            scores.scatter_(1, target[:, None], NOT_AN_OUTCOME)
        tilted = self._tilted(scores, tau, gradients)
        log_m = math.log(max(p.support_size, 1))
        log_g = (tilted.top - own) / tau + tilted.total.log() - log_m
        at_target = None if slopes is None else multiply_slopes_(tilted.weights, slopes, target)
        below = gradients.pull(block, tilted)
        slope = -(below + (tilted.top - own)) / tau.square()
        u, v = (
            (torch.ones_like(tau), torch.zeros_like(tau)) if upstream is None else upstream(log_g, tau, block)
        )
        gradients.add(block, tilted, tau, u, at_target)
        if tilted.weights is not scores:
            give_back("weights", tilted.weights)
        if predicted is not None:
            predicted.collect(u * slope + v)
        found.log_g[block], found.tau[block], found.slope[block] = log_g, tau, slope
        mean = below + tilted.top
        noted |= tilted_statistics(log_g, own / tau, mean / tau, p.support_size, self.statistics)
        for name, value in noted.items():
            found.statistics[name][block] = value
