r"""One pass over chunks of rows: scores, temperatures, log-mean-exp and its closed-form gradients.

With $p_i = \mathrm{softmax}(s_i / \tau_i)$ and
$\log g_i = \log \frac1m \sum_j e^{(s_{ij} - s_{i t_i}) / \tau_i}$,

    dlog_g_i / ds_ij = (p_ij - 1[j = t_i]) / tau_i
    dlog_g_i / dtau_i = -(E_p[s_i] - s_i,t_i) / tau_i^2

so that a chunk's scores are needed once: they are made, read by a predictor, turned into weights in place, multiplied
into the gradients of queries and keys, and overwritten by the next chunk's. Weights e^((s - max s) / tau) are never
normalised: their sum is divided out of the small side of each product.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from dro_temp._tensors import LOW, work_dtype
from dro_temp._typing import Features, PerRow, RowIndex, Scores
from dro_temp.functional.statistics import NOT_AN_OUTCOME, Statistic, tilted_statistics
from dro_temp.functional.transforms import Scale, ScoreTransform
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.kernels.backends.protocol import Backend, SoftmaxPartials
from dro_temp.kernels.memory import acquire, block_rows, release
from dro_temp.kernels.products import empty_contiguous, gradient_dtype, product
from dro_temp.kernels.rows.temperatures import BlockTemperatures

#: `(log_g, tau, rows) -> (dL/dlog_g, dL/dtau)` of a chunk of rows.
GradOutput: TypeAlias = Callable[[PerRow, PerRow, slice], tuple[PerRow, PerRow]]


@dataclass(frozen=True)
class GradMask:
    """Which gradients are computed."""

    queries: bool = False
    keys: bool = False
    bias: bool = False
    parameters: bool = False

    #: True if some gradient is one of the scores.
    scores: bool = field(init=False)
    #: True if some gradient adds up rows: each row's weight in the loss must then be known in the sweep.
    sums_over_rows: bool = field(init=False)

    def __post_init__(self) -> None:
        """Derive what follows."""
        object.__setattr__(self, "scores", self.queries or self.keys or self.bias)
        object.__setattr__(self, "sums_over_rows", self.keys or self.bias or self.parameters)


@dataclass
class ChunkResult:
    """What a sweep returns; gradients that the mask leaves out are None."""

    log_g: PerRow
    tau: PerRow
    slope: PerRow  #: dlog_g / dtau
    statistics: dict[str, PerRow] = field(default_factory=dict)
    queries: Tensor | None = None
    keys: Tensor | None = None
    bias: Tensor | None = None
    parameters: list[Tensor | None] = field(default_factory=list)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep without the tensors that belong to autograd, which may free or recompute them.

    Args:
        target: column of each row's target, int64.
        target_in_support: False to leave each row's target out of its support.
        transform: of the products, or None.
        predictor: reads the scores; None where temperatures are an input.
        features: what the predictor may read of each row, or None.
        index: sample numbers, or None.
        backend: what computes on a chunk.
        statistics: names of statistics to be taken on the way.
    """

    target: RowIndex
    target_in_support: bool
    transform: Callable[[Tensor], Tensor] | None
    predictor: TemperaturePredictor | None
    features: Features | None
    index: RowIndex | None
    backend: Backend
    statistics: tuple[Statistic, ...] = ()


class ChunkedForward:
    """A sweep over rows of products.

    Args:
        plan: what is computed.
        queries: one vector per row, [n d].
        keys: one vector per outcome, [m d].
        bias: one number per outcome, or None.
        tau: temperatures, [n]; None: the plan's predictor is asked.
    """

    def __init__(
        self, plan: SweepPlan, queries: Features, keys: Features, bias: PerRow | None, tau: PerRow | None
    ) -> None:
        self.plan, self.backend, self.tau = plan, plan.backend, tau
        self.queries, self.keys, self.bias = queries, keys, bias
        self.work = work_dtype(queries, keys)
        self.support_size = len(keys) - (0 if plan.target_in_support else 1)
        # A scale is part of the product, where it costs nothing. (A scaled query in low precision would lose digits.)
        self.transform: ScoreTransform | None = None
        self.scale = 1.0
        if isinstance(plan.transform, Scale):
            self.scale = plan.transform.factor
        else:
            assert plan.transform is None or isinstance(plan.transform, ScoreTransform)
            self.transform = plan.transform
        if self.bias is not None:
            # -inf (an outcome that cannot happen) would become NaN when it is weighted by zero.
            self.bias = (self.bias.to(self.work) * self.scale).clamp(min=NOT_AN_OUTCOME)

    @torch.no_grad()
    def run(
        self,
        mask: GradMask,
        grad_output: GradOutput | None,
        *,
        save_scores: Scores | None = None,
        saved_scores: Scores | None = None,
    ) -> ChunkResult:
        """Sweep once.

        Args:
            mask: which gradients to compute.
            grad_output: gradient of each row's log_g and tau; None: one for log_g and zero for tau.
            save_scores: [n m], filled with the scores for a later sweep.
            saved_scores: scores that an earlier sweep saved.
        """
        n, m = len(self.queries), len(self.keys)
        step = block_rows(n, m, self.work, self.queries.device, sums_over_rows=mask.keys)
        self._start(n, mask)
        score = self.backend.scorer(self.queries, self.keys)
        buffer = acquire("scores", step, m, self.queries, self.work)
        for start in range(0, n, step):
            chunk = slice(start, min(start + step, n))
            scores = buffer[: chunk.stop - start]  # [rows, m]
            if saved_scores is not None:
                scores.copy_(saved_scores[chunk])
            else:
                score(self.queries[chunk], scores, self.scale)
                if self.bias is not None:
                    scores.add_(self.bias)
                if self.transform is not None:
                    self.transform.apply_(scores)
            if save_scores is not None:
                save_scores[chunk] = scores
            self._reduce(chunk, scores, mask, grad_output)
        release("scores", buffer)
        result = self._result
        if result.bias is not None:
            result.bias.mul_(self.scale)
        if self._temperatures is not None and mask.parameters:
            result.parameters = self._temperatures.gradients()
        return result

    def _start(self, n: int, mask: GradMask) -> None:
        """Allocate the result, and what adds up the gradients."""
        new = self.queries.new_empty
        result = ChunkResult(new(n, dtype=self.work), new(n, dtype=self.work), new(n, dtype=self.work))
        for name in self.plan.statistics:
            result.statistics[name] = new(n, dtype=self.work)
        result.queries = empty_contiguous(self.queries, self.work) if mask.queries else None
        result.keys = empty_contiguous(self.keys, self.work) if mask.keys else None
        if result.keys is not None and not n:
            result.keys.zero_()  # no chunk will come to overwrite it
        result.bias = torch.zeros_like(self.bias) if mask.bias and self.bias is not None else None
        self._result = result
        self._narrow_keys = self.keys.to(gradient_dtype(self.keys))
        #: Whether p - 1[j = t] is formed before the products, and not after them: see `_subtract_target`.
        self._target_in_weights = self._narrow_keys.dtype in LOW
        self._temperatures = None
        if self.tau is None:
            assert self.plan.predictor is not None
            self._temperatures = BlockTemperatures(self.plan.predictor, self, train=mask.parameters)

    def _reduce(self, chunk: slice, scores: Scores, mask: GradMask, grad_output: GradOutput | None) -> None:
        """Everything after the product; the scores are consumed."""
        result, target = self._result, self.plan.target[chunk]
        at_target = target[:, None]
        target_score = scores.gather(1, at_target).squeeze(1)  # [rows]
        statistics = {}
        if self.plan.statistics:
            in_support = self.plan.target_in_support
            statistics = self.backend.moments(scores, target, in_support, self.plan.statistics)
        if self.tau is not None:
            tau = self.tau[chunk].to(scores.dtype)
        else:
            assert self._temperatures is not None
            tau = self._temperatures.predict(chunk, scores)
        slopes = None  # of the transform, [rows, m]
        if self.transform is not None and mask.scores:
            slopes = self.transform.slope_(scores.clone())
        if not self.plan.target_in_support:
            scores.scatter_(1, at_target, NOT_AN_OUTCOME)
        partials = self._softmax(scores, tau, mask)
        log_m = math.log(max(self.support_size, 1))
        log_g = (partials.row_max - target_score) / tau + partials.sum_exp.log() - log_m
        slope_at_target = None
        if slopes is not None and partials.weights is not None:
            partials.weights.mul_(slopes)
            slope_at_target = slopes.gather(1, at_target).squeeze(1)
        if self._target_in_weights and partials.weights is not None:
            self._subtract_target(chunk, partials, target_score, tau, slope_at_target)
        mean_excess = self._pull(chunk, partials)
        slope = -(mean_excess + (partials.row_max - target_score)) / tau.square()
        if grad_output is None:
            u, v = torch.ones_like(tau), torch.zeros_like(tau)
        else:
            u, v = grad_output(log_g, tau, chunk)
        if mask.scores:
            self._accumulate(chunk, partials, tau, u, slope_at_target)
        if self._temperatures is not None:
            self._temperatures.accumulate(u * slope + v)
        result.log_g[chunk], result.tau[chunk], result.slope[chunk] = log_g, tau, slope
        if self.plan.statistics:
            mean = mean_excess + partials.row_max
            statistics |= tilted_statistics(
                log_g, target_score / tau, mean / tau, self.support_size, self.plan.statistics
            )
            for name, value in statistics.items():
                result.statistics[name][chunk] = value

    def _softmax(self, scores: Scores, tau: PerRow, mask: GradMask) -> SoftmaxPartials:
        """Row sums, and the weights where a gradient reads them."""
        if not mask.scores:  # a frozen host
            return self.backend.row_sums(scores, tau)
        # The product that the queries' gradient needs anyway gives E_p[s], if it is as precise as the scores.
        by_product = mask.queries and self._narrow_keys.dtype not in LOW and self.transform is None
        # Weights may be rounded to the precision of the products, if those are all that reads them.
        alone = self.bias is None and self.transform is None
        factor = self._narrow_keys.dtype if alone else self.work
        return self.backend.softmax_partials_(scores, tau, mean_excess=not by_product, factor=factor)

    def _subtract_target(
        self,
        chunk: slice,
        partials: SoftmaxPartials,
        target_score: PerRow,
        tau: PerRow,
        slope_at_target: PerRow | None,
    ) -> None:
        """Put e_it - sum_exp in the place of e_it.

        Where a row is certain of its target the two nearly cancel: after a product in low precision, the rounding of
        one of them would be all that is left.
        """
        weights = partials.weights
        assert weights is not None
        value = -partials.sum_exp
        if self.plan.target_in_support:
            value = ((target_score - partials.row_max) / tau).exp() + value
        value = value if slope_at_target is None else value * slope_at_target
        weights.scatter_(1, self.plan.target[chunk, None], value[:, None].to(weights.dtype))

    def _pull(self, chunk: slice, partials: SoftmaxPartials) -> PerRow:
        r"""$\mathrm{E}_p[s] - \max s$ of each row; fills the queries' gradient with $\sum_j e_{ij} k_j$."""
        gradient = self._result.queries
        if gradient is not None and partials.weights is not None:
            weighted = product(partials.weights, self._narrow_keys, gradient[chunk])  # [rows, d]
            if partials.mean_excess is None:
                moment = (weighted * self.queries[chunk]).sum(1) * self.scale
                if self.bias is not None:
                    moment = moment + partials.weights @ self.bias.to(weighted.dtype)
                return moment / partials.sum_exp - partials.row_max
        assert partials.mean_excess is not None
        return partials.mean_excess

    def _accumulate(
        self, chunk: slice, partials: SoftmaxPartials, tau: PerRow, u: PerRow, slope_at_target: PerRow | None
    ) -> None:
        """Add a chunk's share to the gradients, given dL/dlog_g of its rows."""
        result, target, weights = self._result, self.plan.target[chunk], partials.weights
        assert weights is not None
        share = u / tau / partials.sum_exp
        if result.bias is not None:
            result.bias.add_(share @ weights)
        share = (share * self.scale)[:, None]
        queries = self.queries[chunk].to(self.work)
        if result.queries is not None:
            result.queries[chunk].mul_(share)
        if result.keys is not None:
            first, factor = chunk.start == 0, self._narrow_keys.dtype
            self.backend.accumulate_(result.keys, weights, queries * share, factor, first=first)
        if not self._target_in_weights:
            at_target = (
                -u / tau if slope_at_target is None else -u / tau * slope_at_target
            )  # dL/ds_it, but for p
            if result.bias is not None:
                result.bias.index_add_(0, target, at_target)
            at_target = (at_target * self.scale)[:, None]
            if result.queries is not None:
                result.queries[chunk].add_(at_target * self.keys[target])
            if result.keys is not None:
                result.keys.index_add_(0, target, queries * at_target)
        if weights.dtype != self.work:  # a copy in the precision of the products
            release("weights", weights)
