"""Log-mean-exp of rows of products as one node of the autograd graph: the score matrix never exists.

Backward needs each row's dL/dlog_g before it can sum gradients over rows, and forward does not have it. Three cases:

- The loss weighs rows as a mean, a sum, a loss scale or an accumulation does. Forward assumes so, forms every
  gradient in its one pass, and backward rescales them by one number: three products, as many as for a stored score
  matrix.
- Backward brings something else. `PrecomputedGrads` detects it, and the pass runs again with the true gradient: four
  products, and exact.
- The estimate depends on all rows and all processes (`LogMovingAverage`), so nothing can be assumed. Backward always
  runs the second pass: four products, or three if the scores fit the byte budget (512 MiB by default).

A second pass draws the same random numbers as the first, so that dropout of a predictor drops the same units.
"""

import contextlib
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dro_temp import _faults
from dro_temp._autograd import RandomState, refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp._pytree import pytree
from dro_temp._typing import PerRow
from dro_temp.functional.statistics import LabelStanding, Statistic, tilted_statistics
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import LinearScores, Rows
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.protocol import Backend, FusedRows
from dro_temp.kernels.exclusions import Exclusions
from dro_temp.kernels.memory import fits_cache
from dro_temp.kernels.rows.chunked import ChunkedForward, ChunkResult, GradMask, GradOutput
from dro_temp.kernels.rows.fused import FusedForward
from dro_temp.kernels.rows.plan import ChunkPlan

# Statistics of the softmax at the row's temperature; the others are of the scores alone.
_OF_SOFTMAX = frozenset({"log_sum_exp", "kl", "entropy"})

# Backward's gradient follows the same formula, multiplied by one factor: a few roundings apart.
_ROUNDINGS = 64


@pytree()
@dataclass(frozen=True)
class LogMeanExp:
    r"""$\log g_i = \log \frac1m \sum_j e^{(s_{ij} - s_{i t_i}) / \tau_i}$ of each row, temperatures and statistics.

    Args:
        log_g: with gradient to queries, keys, bias, tau and the predictor's parameters.
        tau: the temperatures, with gradient if they were predicted in the pass.
        statistics: the requested statistics; detached, unless they were requested to be `differentiable`.
        mean: `GradOutput.mean`, where its gradient was formed in the pass. A backward through it alone is known to
            bring what was assumed, and compares nothing; None otherwise.
        label: where the targets stand, if it was requested.
    """

    log_g: PerRow
    tau: PerRow
    statistics: dict[str, PerRow]
    mean: Tensor | None = None
    label: LabelStanding | None = None


def log_mean_exp_rows(
    rows: Rows,
    tau: PerRow | TemperaturePredictor,
    *,
    assumed_grad_output: GradOutput | None = None,
    statistics: Collection[Statistic] = (),
    differentiable: bool = False,
    reads_label: bool = False,
    backend: Backend = torch_backend,
) -> LogMeanExp:
    r"""$\log g_i = \log \frac1m \sum_j e^{(s_{ij} - s_{i t_i}) / \tau_i}$ of each row, without the score matrix.

    Scores are computed a chunk of rows at a time, in one reused buffer. With `assumed_grad_output`, every gradient is
    formed in that same pass and backward only rescales it: three matrix products in all, as many as for a stored score
    matrix. If backward brings something else (or nothing was assumed), it runs again: four products, or three if the
    scores fit the byte budget.

    Args:
        rows: rows whose scores are `LinearScores`; all count, whatever their weight.
        tau: [n] temperatures, or the predictor that reads the scores.
        assumed_grad_output: the gradient that backward will bring for each row, up to one factor for all.
        statistics: names of statistics to return of each row.
        differentiable: True for gradient through log_sum_exp, kl and entropy, to queries, keys, bias, tau and the
            predictor's parameters. Backward then runs a pass of its own: four products. The others stay detached.
        reads_label: True for `label`, where each row's target stands at temperature 1; detached.
        backend: what computes on a chunk.

    Raises:
        RuntimeError: under `torch.func` transforms, or for a second derivative.

    Example:
        >>> import torch
        >>> scores = LinearScores(torch.randn(4, 8), torch.randn(100, 8))
        >>> output = log_mean_exp_rows(Rows(scores, torch.zeros(4, dtype=torch.long)), torch.ones(4))
        >>> output.log_g.shape
        torch.Size([4])
    """
    refuse_transforms()
    names = tuple(dict.fromkeys(statistics))
    predictor = None if isinstance(tau, Tensor) else tau
    scores = rows.scores
    assert isinstance(scores, LinearScores)
    dtype = scores.dtype
    plan = ChunkPlan(
        rows.target.long(),
        rows.target_in_support,
        rows.support_size,
        scores.transform,
        predictor,
        None if predictor is None else rows.features,
        None if predictor is None else rows.index,
        backend,
        dtype,
        scores.score_dtype or dtype,
        (
            *(name for name in names if not (differentiable and name in _OF_SOFTMAX)),
            *(LabelStanding._fields if reads_label else ()),
        ),
        reads_label,
        differentiable and not _OF_SOFTMAX.isdisjoint(names),
        None if rows.group is None else Exclusions.of(rows),
        None if rows.group is None else rows.log_support_sizes(scores.queries.new_empty(0, dtype=dtype)),
    )
    factors = (scores.queries, scores.keys, scores.bias)
    records_graph = torch.is_grad_enabled()  # in the forward of a Function it is off
    apply = partial(_LogMeanExp.apply, plan, assumed_grad_output, records_graph, *factors)
    if isinstance(tau, Tensor):
        log_g, _, mean, mean_score, target_score, *per_row = apply(tau)
        taus = tau.to(log_g.dtype)
    else:
        log_g, taus, mean, mean_score, target_score, *per_row = tau(
            run=lambda: apply(None, *tau.whole_parameters())
        )
    found = dict(zip(plan.statistics, per_row, strict=True))
    label = LabelStanding(*(found.pop(name) for name in LabelStanding._fields)) if reads_label else None
    if plan.differentiable:
        log_m: float | Tensor = math.log(max(plan.support_size, 1))
        log_m = log_m if plan.log_support_sizes is None else plan.log_support_sizes
        found |= tilted_statistics(log_g, target_score / taus, mean_score / taus, log_m, names)
        found = {name: found[name] for name in names}
    return LogMeanExp(log_g, taus, found, mean, label)


class PrecomputedGrads:
    """Gradients formed in forward, which are right if backward brings a multiple of what was assumed.

    A mean, a sum, a loss scale, accumulation: each multiplies all rows by one factor. Anything else (a second
    loss on the same values, a penalty on temperatures) is detected, and costs a second pass.

    Args:
        assumed: the assumed gradient; None where no gradient is a sum over rows: each row is then rescaled by itself.
    """

    def __init__(self, assumed: GradOutput | None) -> None:
        self._assumed = assumed
        self._assumed_u: list[Tensor] = []
        self._assumed_v: list[Tensor] = []
        self.result: ChunkResult | None = None

    def assumed(self) -> tuple[PerRow, PerRow]:
        """The assumed dL/dlog_g and dL/dtau of all rows."""
        return torch.cat(self._assumed_u), torch.cat(self._assumed_v)

    @property
    def grad_output(self) -> GradOutput | None:
        """Gradients that the pass multiplies into its rows."""
        # No attribute: a bound method would keep this object, and its gradients, alive until cycles are collected.
        assumed = self._assumed
        return (
            None if assumed is None else replace(assumed, function=self._record, asked_early=assumed.function)
        )

    def _record(
        self, log_g: PerRow, tau: PerRow, rows: slice, *label: LabelStanding
    ) -> tuple[PerRow, PerRow]:
        assert self._assumed is not None
        u, v = self._assumed.function(log_g, tau, rows, *label)
        self._assumed_u.append(u)
        self._assumed_v.append(v)
        return u, v

    def scaled(self, u: PerRow, v: PerRow, *, tau_predicted: bool) -> tuple[ChunkResult, float] | None:
        """The gradients, and the factor that they still lack; None if the assumption was wrong.

        Args:
            u: dL/dlog_g, [n].
            v: dL/dtau, [n].
            tau_predicted: whether the pass formed tau's gradient, so that v matters.
        """
        result = self.result
        assert result is not None
        if self._assumed is None:
            queries = result.queries
            return replace(result, queries=None if queries is None else queries.mul_(u[:, None])), 1.0
        factor = self._factor(u, v, tau_predicted)
        return None if factor is None else (result, factor)

    def _factor(self, u: PerRow, v: PerRow, tau_predicted: bool) -> float | None:
        if not len(u):
            return 1.0
        if _faults.is_capturing():
            return None  # a graph cannot ask; `LossOutput.mean`, whose gradient is known, does not come here
        assumed_u = torch.cat(self._assumed_u).double()
        factor = (u.double() @ assumed_u) / assumed_u.square().sum()  # least squares
        proportional = _close(u, assumed_u * factor)
        if tau_predicted:
            proportional &= _close(v, torch.cat(self._assumed_v).double() * factor)
        # One wait for the device.
        number, is_proportional = torch.stack([factor, proportional.double()]).tolist()
        if abs(number - 1.0) <= _ROUNDINGS * torch.finfo(u.dtype).eps:
            number = 1.0  # roundings apart: saves a pass over the gradients
        return number if is_proportional else None


def _close(actual: PerRow, expected: PerRow) -> Tensor:
    tolerance = _ROUNDINGS * torch.finfo(actual.dtype).eps * expected.abs()
    return ((actual.double() - expected).abs() <= tolerance).all()


class _LogMeanExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: ChunkPlan,
        assumed: GradOutput | None,
        records_graph: bool,
        queries: Tensor,
        keys: Tensor,
        bias: Tensor | None,
        tau: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        needs_grad = ctx.needs_input_grad[3:]
        if records_graph:
            required = GradMask(needs_grad[0], needs_grad[1], needs_grad[2], any(needs_grad[4:]))
        else:  # leaves require gradients even where no graph is recorded
            required = GradMask()
        random = plan.predictor is not None and plan.predictor.training  # dropout, say
        if random and queries.is_cuda and _faults.is_capturing():
            random = False  # a graph's generator has no state to keep: one pass must do
        ctx.random_state = RandomState(queries.device) if random else None
        # Without an assumption, the weight of each row in a sum over rows is still unknown.
        assumed = None if plan.differentiable else assumed
        unknown = plan.differentiable or (required.sums_over_rows and assumed is None)
        mask = GradMask() if unknown else required
        fuses = plan.backend.fused_rows is not None and FusedForward.knows(plan.transform)
        ctx.forward = FusedForward if fuses else ChunkedForward
        chunked = ctx.forward(plan, queries, keys, bias, tau, parameters)
        n, m = queries.shape[0], keys.shape[0]
        ctx.saved_scores = None
        if mask != required and fits_cache(n * m, chunked.score_dtype):
            ctx.saved_scores = queries.new_empty((n, m), dtype=chunked.score_dtype)
        precomputed = PrecomputedGrads(assumed if mask.sums_over_rows else None)
        result = precomputed.result = chunked.run(mask, precomputed.grad_output, save_scores=ctx.saved_scores)
        ctx.precomputed = precomputed if mask == required else None
        ctx.plan, ctx.mask = plan, required
        # If only temperatures that are an input learn, backward needs their slope alone.
        factors = (queries, keys, bias) if any(needs_grad[:3]) or tau is None else (None, None, None)
        ctx.save_for_backward(*factors, tau, result.slope, result.mean_slope, *parameters)
        per_row = tuple(result.statistics[name] for name in plan.statistics)
        ctx.mark_non_differentiable(*per_row, *(() if tau is None else (result.tau,)))
        mean, ctx.assumed = None, None
        if mask.sums_over_rows and assumed is not None and assumed.mean is not None:
            mean, ctx.assumed = assumed.mean(result.log_g, result.tau), precomputed.assumed()
        ctx.set_materialize_grads(False)
        return result.log_g, result.tau, mean, result.mean_score, result.target_score, *per_row  # type: ignore[arg-type]

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        queries, keys, bias, tau, slope, mean_slope, *parameters = ctx.saved_tensors
        of_log_g, of_tau, of_mean, b, c = grads[:5]
        if all(x is None for x in grads[:5]):  # only detached statistics were used
            return (None,) * len(ctx.needs_input_grad)
        u = torch.zeros_like(slope) if of_log_g is None else of_log_g
        v = torch.zeros_like(slope) if of_tau is None else of_tau
        if of_mean is not None:
            assumed_u, assumed_v = ctx.assumed
            u, v = u + of_mean * assumed_u, v + of_mean * assumed_v
        tau_grad = None  # of temperatures that are an input
        if ctx.needs_input_grad[6]:
            tau_grad = u * slope
            if of_mean is not None:
                tau_grad = tau_grad + of_mean * assumed_v
            if b is not None:
                tau_grad = tau_grad + b * mean_slope
        if queries is None:
            assert tau_grad is not None  # nothing else learns
            return None, None, None, None, None, None, tau_grad.to(tau.dtype)
        # Used once, since it is rescaled in place: a second backward through a retained graph runs again.
        precomputed, ctx.precomputed = ctx.precomputed, None
        scaled: tuple[ChunkResult, float | Tensor] | None = None
        if b is not None or c is not None:
            precomputed = None
        if precomputed is not None and of_mean is not None and of_log_g is None and of_tau is None:
            assert precomputed.result is not None
            scaled = precomputed.result, of_mean
        elif precomputed is not None:
            scaled = precomputed.scaled(u, v, tau_predicted=tau is None)
        if scaled is not None:
            result, factor = scaled
        else:
            factor = 1.0
            predictor = ctx.plan.predictor
            if predictor is not None and predictor.training != (ctx.random_state is not None):
                predictor.refuse_other_mode()
            with contextlib.nullcontext() if ctx.random_state is None else ctx.random_state.restored():
                chunked = ctx.forward(ctx.plan, queries, keys, bias, tau, parameters)
                grad_output = GradOutput(lambda log_g, tau, rows: (u[rows], v[rows]), affine=True)
                if b is not None or c is not None:
                    zero = torch.zeros_like(slope)
                    b, c = (zero if x is None else x for x in (b, c))
                    grad_output = replace(grad_output, of_scores=lambda rows: (b[rows], c[rows]))
                result = chunked.run(ctx.mask, grad_output, saved_scores=ctx.saved_scores)
        inputs = (queries, keys, bias, tau, *parameters)
        parameter_grads = result.parameters or [None] * len(parameters)
        input_grads = (result.queries, result.keys, result.bias, tau_grad, *parameter_grads)
        # The gradient of temperatures that are an input was formed from u itself.
        factors = (factor, factor, factor, 1.0, *[factor] * len(parameters))
        fused = ctx.plan.backend.fused_rows
        cast = (_cast(*triple, fused) for triple in zip(input_grads, inputs, factors, strict=True))
        return None, None, None, *cast


def _cast(
    gradient: Tensor | None, x: Tensor | None, factor: float | Tensor, fused: FusedRows | None
) -> Tensor | None:
    """The gradient times a factor, in the precision of its input; in one pass, since that of a head is large."""
    if gradient is None or x is None:
        return None
    if isinstance(factor, Tensor) and factor.is_cpu:
        factor = factor.item()
    if isinstance(factor, Tensor):  # reading it would wait for the device
        if gradient.dtype == x.dtype:
            return gradient.mul_(factor) if fused is None else fused.scale_(gradient, factor)
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=x.dtype))
    if gradient.dtype == x.dtype:
        return gradient if factor == 1.0 else gradient.mul_(factor)
    if factor == 1.0:
        return gradient.to(x.dtype)
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=x.dtype))
