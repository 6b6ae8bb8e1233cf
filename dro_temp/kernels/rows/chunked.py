r"""One pass over chunks of rows: scores, temperatures, log-mean-exp and its closed-form gradients.

With $p_i = \mathrm{softmax}(s_i / \tau_i)$ and
$\log g_i = \log \frac1m \sum_j e^{(s_{ij} - s_{i t_i}) / \tau_i}$,

    dlog_g_i / ds_ij  = (p_ij - 1[j = t_i]) / tau_i
    dlog_g_i / dtau_i = -(E_p[s_i] - s_i,t_i) / tau_i^2

so each chunk of scores is needed once, in one reused buffer:

    scores  = queries @ keys.T               [rows m]  product 1
    tau     = predictor(scores)              [rows]    or an input
    weights = exp((scores - row_max) / tau)  [rows m]  in place of the scores
    dq      = weights @ keys                 [rows d]  product 2
    dk     += weights.T @ (share * queries)  [m d]     product 3

What can be done on the small side of a product is not done on [rows m], where each pass costs memory traffic:

- Weights are not normalised: their sum is divided out of the [rows d] side of each product.
- E_p[s] is the dot product of a query with its row of product 2, where that is as precise as the scores.
- A scale is a factor of product 1. Scaled low-precision queries would lose digits.
- The target's -1 in p - 1[j = t] is added to the [rows d] and [m d] sides. Only in rows that are certain of their
  target, and in low-precision products, is it subtracted from the weights: the two nearly cancel, and after the product
  the rounding error of p alone would remain.
- The first chunk overwrites dk: filling it with zeros would be one more pass over [m d].

Forward forms all gradients if each row's weight in the loss can be assumed (`autograd.PrecomputedGrads`): three
products in all, as many as for a stored score matrix; four if the assumption is wrong or impossible.

What did not pay:

- Chunks of fewer than 128 rows leave the CPU waiting for keys; beyond 256 rows little is gained (`memory.block_rows`).
- Activation checkpointing by hooks for the predictor: allocations between blocks fragment the heap, four times the
  memory of a block at 16,384 rows (`_autograd.CheckpointedBlocks`).

Forward and backward of a language-model head with TempNet, over the three products alone (one thread of an AMD EPYC
with AVX2, torch 2.14, float32, 2026-11-24; docs/streaming.md has the method and the other libraries):

    | tokens x d x words    | backend cpu       | backend torch     | scratch |
    | 2,048 x 512 x 32,000  | 1.17 [1.06, 1.33] | 1.34 [1.19, 1.37] | 41 MB   |
    | 4,096 x 768 x 50,304  | 1.03 [0.99, 1.08] | 1.13 [1.08, 1.13] | 63 MB   |
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from dro_temp._tensors import LOW
from dro_temp._typing import Features, PerRow, Scores
from dro_temp.functional.statistics import (
    NOT_AN_OUTCOME,
    LabelStanding,
    ScoreProfile,
    label_standing,
    tilted_statistics,
)
from dro_temp.functional.transforms import Scale, ScoreTransform
from dro_temp.interfaces.statistics import FoldedProjection
from dro_temp.kernels.backends.protocol import SoftmaxPartials
from dro_temp.kernels.memory import acquire, block_rows, release
from dro_temp.kernels.products import empty_contiguous, gradient_dtype, product
from dro_temp.kernels.rows.plan import ChunkPlan
from dro_temp.kernels.rows.temperatures import BlockTemperatures

# Scores this far below the maximum weigh nothing; their square is still finite.
_FAR = 1e18


@dataclass(frozen=True)
class GradOutput:
    """The gradient that backward brings for each row of a chunk.

    Args:
        function: `(log_g, tau, rows) -> (dL/dlog_g, dL/dtau)`; with `reads_label`, `(log_g, tau, rows, label)`.
        mean: `(log_g, tau) -> L` of all rows, if L is a number whose gradient `function` is.
        affine: whether dL/dlog_g does not depend on log_g, so that it is known before the row's scores are summed.
        of_scores: `rows -> (dL/dE_p[s], dL/ds_t)` beside log_g, in a pass that is `differentiable`.
        asked_early: what is called for dL/dlog_g before log_g is known; None: `function`.
        reads_label: whether the gradient depends on the `LabelStanding` of the chunk's rows.
    """

    function: Callable[..., tuple[PerRow, PerRow]]
    mean: Callable[[PerRow, PerRow], Tensor] | None = None
    affine: bool = False
    of_scores: Callable[[slice], tuple[PerRow, PerRow]] | None = None
    asked_early: Callable[[PerRow, PerRow, slice], tuple[PerRow, PerRow]] | None = None
    reads_label: bool = False

    def of_log_g(self, tau: PerRow, rows: slice) -> PerRow | None:
        """dL/dlog_g before log_g is known; None if it depends on it."""
        return (
            (self.asked_early or self.function)(torch.zeros_like(tau), tau, rows)[0] if self.affine else None
        )


@dataclass(frozen=True)
class GradMask:
    """Which gradients are computed."""

    queries: bool = False
    keys: bool = False
    bias: bool = False
    parameters: bool = False

    #: True if some gradient is one of the scores.
    scores: bool = field(init=False)
    #: True if some gradient is a sum over rows: each row's weight in the loss must then be known in the pass.
    sums_over_rows: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", self.queries or self.keys or self.bias)
        object.__setattr__(self, "sums_over_rows", self.keys or self.bias or self.parameters)


@dataclass
class ChunkResult:
    """Values and gradients of a pass; gradients that the mask leaves out are None."""

    log_g: PerRow
    tau: PerRow
    slope: PerRow  #: dlog_g / dtau
    statistics: dict[str, PerRow] = field(default_factory=dict)
    mean_score: PerRow | None = None  #: E_p[s]
    mean_slope: PerRow | None = None  #: dE_p[s] / dtau
    target_score: PerRow | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    bias: Tensor | None = None
    parameters: list[Tensor | None] = field(default_factory=list)


class ChunkedForward:
    """A pass over rows of products.

    Args:
        plan: what is computed.
        queries: one vector per row, [n d].
        keys: one vector per outcome, [m d].
        bias: one number per outcome, [m], or None.
        tau: temperatures, [n]; None: predicted by the plan's predictor.
        parameters: that predictor's.
    """

    def __init__(
        self,
        plan: ChunkPlan,
        queries: Features,
        keys: Features,
        bias: PerRow | None,
        tau: PerRow | None,
        parameters: Sequence[Tensor] = (),
    ) -> None:
        self.plan, self.backend, self.tau, self.parameters = plan, plan.backend, tau, parameters
        self.queries, self.keys, self.bias = queries, keys, bias
        self.dtype = self.score_dtype = plan.dtype
        self._grad_dtype = plan.dtype  # in which the keys' gradient is added up
        self.transform: ScoreTransform | None = None
        self.scale = 1.0  # a factor of the product, where it costs nothing
        if isinstance(plan.transform, Scale):
            self.scale = plan.transform.factor
        else:
            assert plan.transform is None or isinstance(plan.transform, ScoreTransform)
            self.transform = plan.transform
        if self.bias is not None:
            # -inf (an outcome that cannot happen) would become NaN when it is weighted by zero.
            self.bias = (self.bias.to(self.dtype) * self.scale).clamp(min=NOT_AN_OUTCOME)

    @torch.no_grad()
    def run(
        self,
        mask: GradMask,
        grad_output: GradOutput | None,
        *,
        save_scores: Scores | None = None,
        saved_scores: Scores | None = None,
    ) -> ChunkResult:
        """One pass over the rows.

        Args:
            mask: which gradients to compute.
            grad_output: gradient of each row's log_g and tau; None: one for log_g and zero for tau.
            save_scores: [n m], filled with the scores for a later pass.
            saved_scores: scores that an earlier pass saved.
        """
        n = len(self.queries)
        self._start(n, mask)
        buffer = self._buffer
        step = len(buffer)
        for start in range(0, n, step):
            chunk = slice(start, min(start + step, n))
            scores = buffer[: chunk.stop - start]  # [rows m]
            if saved_scores is not None:
                scores.copy_(saved_scores[chunk])
            else:
                self._score(chunk, scores)
            if save_scores is not None:
                save_scores[chunk] = scores
            self._reduce(chunk, scores, mask, grad_output)
        release("scores", buffer)
        result = self._result
        if self._temperatures is not None and mask.parameters:
            result.parameters = self._temperatures.gradients()
        return result

    def _start(self, n: int, mask: GradMask) -> None:
        """Allocate the block of scores, the result, and the accumulators of the gradients."""
        self._allocate_block(n, mask)
        new = self.queries.new_empty
        log_g, tau, slope = (new(n, dtype=self.dtype) for _ in range(3))
        result = ChunkResult(log_g, tau, slope)
        for name in self.plan.statistics:
            result.statistics[name] = new(n, dtype=self.dtype)
        if self.plan.differentiable:
            result.mean_score, result.mean_slope, result.target_score = (
                new(n, dtype=self.dtype) for _ in range(3)
            )
        result.queries = empty_contiguous(self.queries, self.dtype) if mask.queries else None
        result.keys = empty_contiguous(self.keys, self._grad_dtype) if mask.keys else None
        if result.keys is not None and not n:
            result.keys.zero_()  # no chunk will overwrite it
        result.bias = torch.zeros_like(self.bias) if mask.bias and self.bias is not None else None
        self._result = result
        self._scorer = self.backend.scorer(self.queries, self.keys)
        # [m d], in the precision of products 2 and 3
        self._narrow_keys = self.keys.to(gradient_dtype(self.keys))
        #: Whether p - 1[j = t] may be formed before the products: see `_subtract_target`.
        self._target_in_weights = self._narrow_keys.dtype in LOW
        self._target_rest: PerRow | None = None  # of the last chunk
        self._temperatures = None
        if self.tau is None:
            fold = partial(FoldedProjection, self.keys, self.bias, scale=self.scale)
            self._temperatures = BlockTemperatures(
                self.plan,
                self.parameters,
                self.queries,
                fold if self.transform is None and self.plan.exclusions is None else None,
                train=mask.parameters,
            )

    def _allocate_block(self, n: int, mask: GradMask) -> None:
        m = len(self.keys)
        rows = block_rows(n, m * self.dtype.itemsize, self.queries.device, sums_over_rows=mask.keys)
        self._buffer = acquire("scores", rows, m, self.queries, self.dtype)  # [rows m]

    def _score(self, chunk: slice, scores: Scores) -> None:
        """Fill a block with the scores of a chunk."""
        self._scorer(self.queries[chunk], scores, self.scale)
        if self.bias is not None:
            scores.add_(self.bias)
        if self.transform is not None:
            self.transform.apply_(scores)

    def _reduce(self, chunk: slice, scores: Scores, mask: GradMask, grad_output: GradOutput | None) -> None:
        """Everything after product 1; the scores are overwritten."""
        result, target = self._result, self.plan.target[chunk]
        column = target[:, None]  # [rows 1]
        target_score = scores.gather(1, column).squeeze(1)  # [rows]
        statistics, label, profile = {}, None, None
        exclusions, log_sizes = self.plan.exclusions, self.plan.log_support_sizes
        if exclusions is not None:
            exclusions.fill_(scores, chunk)
        if self.plan.reads_label:
            label, profile = self._label(scores, target_score)
        if self.plan.statistics:
            in_support = self.plan.target_in_support
            statistics = self.backend.moments(scores, target, in_support, self.plan.statistics)
        if self.tau is not None:
            tau = self.tau[chunk].to(scores.dtype)  # [rows]
        else:
            assert self._temperatures is not None
            tau = self._temperatures.predict(chunk, scores, profile)
        slopes = None  # of the transform, [rows m]
        if self.transform is not None and mask.scores:
            slopes = self.transform.slope_(scores.clone())
            if exclusions is not None:  # the slope at NOT_AN_OUTCOME may be anything
                exclusions.fill_(slopes, chunk, 0.0)
        if not self.plan.target_in_support:
            scores.scatter_(1, column, NOT_AN_OUTCOME)
        if label is not None:
            statistics |= label._asdict()
        if self.plan.differentiable:
            for name, value in statistics.items():
                result.statistics[name][chunk] = value
            self._reduce_with_mean(chunk, scores, target_score, slopes, tau, mask, grad_output)
            return
        partials = self._softmax(scores, tau, mask)
        log_m = math.log(max(self.plan.support_size, 1)) if log_sizes is None else log_sizes[chunk]
        log_g = (partials.row_max - target_score) / tau + partials.sum_exp.log() - log_m  # [rows]
        target_slope = None  # of the transform, [rows]
        if slopes is not None and partials.weights is not None:
            partials.weights.mul_(slopes)
            target_slope = slopes.gather(1, column).squeeze(1)
        if self._target_in_weights and partials.weights is not None:
            self._subtract_target(chunk, partials, target_score, tau, target_slope)
        mean_excess = self._mean_excess(chunk, partials)
        slope = -(mean_excess + (partials.row_max - target_score)) / tau.square()  # dlog_g / dtau, [rows]
        if grad_output is None:
            u, v = torch.ones_like(tau), torch.zeros_like(tau)
        else:
            standing = (label,) if grad_output.reads_label else ()
            u, v = grad_output.function(log_g, tau, chunk, *standing)  # dL/dlog_g and dL/dtau, [rows]
        if mask.scores:
            self._accumulate(chunk, partials, tau, u, target_slope)
        if self._temperatures is not None:
            self._temperatures.accumulate(u * slope + v)
        result.log_g[chunk], result.tau[chunk], result.slope[chunk] = log_g, tau, slope
        if self.plan.statistics:
            mean = mean_excess + partials.row_max
            statistics |= tilted_statistics(
                log_g, target_score / tau, mean / tau, log_m, self.plan.statistics
            )
            for name, value in statistics.items():
                result.statistics[name][chunk] = value

    def _label(self, scores: Scores, target_score: PerRow) -> tuple[LabelStanding, ScoreProfile]:
        """Where the targets of a chunk stand, and the profile of its scores, which stay."""
        profile = self.backend.profile(scores)
        return label_standing(target_score.to(profile.row_max.dtype), profile), profile

    def _reduce_with_mean(
        self,
        chunk: slice,
        scores: Scores,
        target_score: PerRow,
        slopes: Scores | None,
        tau: PerRow,
        mask: GradMask,
        grad_output: GradOutput | None,
    ) -> None:
        r"""As `_reduce`, with E_p[s] and the target's score as results, in plain PyTorch.

        With b = dL/dE_p[s] and c = dL/ds_t beside log_g, and dE_p[s]/ds_j = p_j (1 + (s_j - E_p[s]) / tau),

        $G_j = p_j (u/\tau + b + b (s_j - \mathrm{E}_p[s])/\tau) - 1[j = t] (u/\tau - c)$.
        """
        result, column = self._result, self.plan.target[chunk, None]
        row_max = scores.amax(1)
        below = scores - row_max[:, None]
        p = (below / tau[:, None]).exp()  # [rows m]
        sum_exp = p.sum(1)
        p /= sum_exp[:, None]
        # What is no outcome weighs nothing, and its square is finite.
        below.clamp_(min=-_FAR)
        excess = (p * below).sum(1)
        below -= excess[:, None]  # s - E_p[s], [rows m]
        mean, variance = row_max + excess, (p * below.square()).sum(1)
        sizes = self.plan.log_support_sizes
        log_m = math.log(max(self.plan.support_size, 1)) if sizes is None else sizes[chunk]
        log_g = (row_max - target_score) / tau + sum_exp.log() - log_m
        slope, mean_slope = -(mean - target_score) / tau.square(), -variance / tau.square()
        u, v = torch.ones_like(tau), torch.zeros_like(tau)
        b = c = torch.zeros_like(tau)
        if grad_output is not None:
            u, v = grad_output.function(log_g, tau, chunk)
            if grad_output.of_scores is not None:
                b, c = grad_output.of_scores(chunk)
        if mask.scores:
            gradient = p * (u / tau + b)[:, None] + p * below * (b / tau)[:, None]
            gradient.scatter_add_(1, column, (c - u / tau)[:, None])
            gradient = gradient if slopes is None else gradient * slopes
            gradient *= self.scale
            if result.bias is not None:
                result.bias.add_(gradient.sum(0))
            if result.queries is not None:
                product(gradient, self._narrow_keys, result.queries[chunk])
            if result.keys is not None:
                queries, factor = self.queries[chunk].to(self.dtype), self._narrow_keys.dtype
                self.backend.accumulate_(result.keys, gradient, queries, factor, first=chunk.start == 0)
        if self._temperatures is not None:
            self._temperatures.accumulate(u * slope + v + b * mean_slope)
        result.log_g[chunk], result.tau[chunk], result.slope[chunk] = log_g, tau, slope
        assert result.mean_score is not None
        assert result.mean_slope is not None
        assert result.target_score is not None
        result.mean_score[chunk], result.mean_slope[chunk] = mean, mean_slope
        result.target_score[chunk] = target_score

    def _softmax(self, scores: Scores, tau: PerRow, mask: GradMask) -> SoftmaxPartials:
        """Row sums, and the weights if a gradient needs them."""
        if not mask.scores:  # a frozen host
            return self.backend.row_sums(scores, tau)
        # Product 2 gives E_p[s] as well, if it is as precise as the scores.
        from_product = mask.queries and self._narrow_keys.dtype not in LOW and self.transform is None
        # Weights may be rounded to the precision of the products, if nothing else reads them.
        only_products = self.bias is None and self.transform is None
        factor = self._narrow_keys.dtype if only_products else self.dtype
        return self.backend.softmax_partials_(scores, tau, mean_excess=not from_product, factor=factor)

    def _subtract_target(
        self,
        chunk: slice,
        partials: SoftmaxPartials,
        target_score: PerRow,
        tau: PerRow,
        target_slope: PerRow | None,
    ) -> None:
        """Subtract the target's sum_exp from its weight, before products in low precision, in rows certain of it.

        What is still missing (all of it in other rows, the rounding error here) is added after the products.
        """
        weights = partials.weights
        assert weights is not None
        weight = torch.zeros_like(tau)
        if self.plan.target_in_support:
            weight = ((target_score - partials.row_max) / tau).exp()
        difference = weight - partials.sum_exp
        inside = torch.where(2 * weight > partials.sum_exp, difference, weight)
        if target_slope is not None:
            difference, inside = difference * target_slope, inside * target_slope
        inside = inside.to(self._narrow_keys.dtype)
        self._target_rest = difference - inside
        weights.scatter_(1, self.plan.target[chunk, None], inside[:, None].to(weights.dtype))

    def _mean_excess(self, chunk: slice, partials: SoftmaxPartials) -> PerRow:
        r"""$\mathrm{E}_p[s] - \max s$ of each row; product 2 fills the queries' gradient with $\sum_j e_{ij} k_j$."""
        gradient = self._result.queries
        if gradient is not None and partials.weights is not None:
            weighted = product(partials.weights, self._narrow_keys, gradient[chunk])  # [rows d]
            if partials.mean_excess is None:
                moment = (weighted * self.queries[chunk]).sum(1) * self.scale  # sum_j e_ij s_ij, [rows]
                if self.bias is not None:
                    moment = moment + partials.weights @ self.bias.to(weighted.dtype)
                return moment / partials.sum_exp - partials.row_max
        assert partials.mean_excess is not None
        return partials.mean_excess

    def _accumulate(
        self, chunk: slice, partials: SoftmaxPartials, tau: PerRow, u: PerRow, target_slope: PerRow | None
    ) -> None:
        """Add a chunk's share to the gradients, given dL/dlog_g of its rows."""
        result, target, weights = self._result, self.plan.target[chunk], partials.weights
        assert weights is not None
        share = u / tau / partials.sum_exp * self.scale  # [rows]
        if result.bias is not None:
            result.bias.add_(share @ weights)  # [m]
        share = share[:, None]
        queries = self.queries[chunk].to(self.dtype)  # [rows d]
        if result.queries is not None:
            result.queries[chunk].mul_(share)
        if result.keys is not None:
            first, factor = chunk.start == 0, self._narrow_keys.dtype
            self.backend.accumulate_(result.keys, weights, queries * share, factor, first=first)
        if self._target_in_weights:
            assert self._target_rest is not None
            target_grad = self._target_rest / partials.sum_exp  # [rows]
        else:
            target_grad = torch.full_like(u, -1.0)  # that in p - 1[j = t], [rows]
            target_grad = target_grad if target_slope is None else -target_slope
        target_grad = target_grad * u / tau * self.scale
        if result.bias is not None:
            result.bias.index_add_(0, target, target_grad)
        target_grad = target_grad[:, None]
        if result.queries is not None:
            result.queries[chunk].add_(target_grad * self.keys[target])
        if result.keys is not None:
            result.keys.index_add_(0, target, queries * target_grad)
        if weights.dtype != self.dtype:  # a copy in the precision of the products
            release("weights", weights)
