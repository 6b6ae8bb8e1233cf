"""Log-mean-exp of rows of products as one node of the autograd graph: the score matrix never exists."""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dro_temp._autograd import RandomState, refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp._pytree import pytree
from dro_temp._typing import PerRow
from dro_temp.functional.statistics import Statistic
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import LinearScores, Rows
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.protocol import Backend
from dro_temp.kernels.memory import fits_cache
from dro_temp.kernels.rows.chunked import ChunkedForward, ChunkResult, GradMask, GradOutput, SweepPlan

# What backward brings was computed by the same formula, and multiplied by one factor: a few roundings apart.
_ROUNDINGS = 64


@pytree()
@dataclass(frozen=True)
class LogMeanExp:
    r"""$\log g_i = \log \frac1m \sum_j e^{(s_{ij} - s_{i t_i}) / \tau_i}$ of each row, and what was read on the way.

    Args:
        log_g: with gradient to queries, keys, bias, tau and the predictor's parameters.
        tau: the temperatures, with gradient if they were predicted in the sweep.
        statistics: the requested statistics, detached.
    """

    log_g: PerRow
    tau: PerRow
    statistics: dict[str, PerRow]


def log_mean_exp_rows(
    rows: Rows,
    tau: PerRow | TemperaturePredictor,
    *,
    assumed_grad_output: GradOutput | None = None,
    statistics: Collection[Statistic] = (),
    backend: Backend = torch_backend,
) -> LogMeanExp:
    r"""$\log g_i = \log \frac1m \sum_j e^{(s_{ij} - s_{i t_i}) / \tau_i}$ of each row, without the score matrix.

    Scores are made a chunk of rows at a time, in one reused buffer. With `assumed_grad_output`, every gradient is
    formed in that same sweep and backward only rescales it: three matrix products in all, as many as a loss needs that
    holds the score matrix. If backward brings something else (or nothing was assumed), it sweeps again: four products,
    or three if the scores fit the byte budget.

    Args:
        rows: rows whose scores are `LinearScores`; all count, whatever their weight.
        tau: temperatures, or the predictor that reads the scores.
        assumed_grad_output: the gradient that backward will bring for each row, up to one factor for all.
        statistics: statistics to take of each row on the way.
        backend: what computes on a chunk.

    Raises:
        RuntimeError: under `torch.func` transforms, or where a second derivative is asked for.

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
    plan = SweepPlan(
        rows.target.long(),
        rows.target_in_support,
        scores.transform,
        predictor,
        None if predictor is None else rows.features,
        None if predictor is None else rows.index,
        backend,
        names,
    )
    factors = (scores.queries, scores.keys, scores.bias)
    records = torch.is_grad_enabled()  # in the forward of a Function it is off
    apply = partial(_LogMeanExp.apply, plan, assumed_grad_output, records, *factors)
    if isinstance(tau, Tensor):
        log_g, _, *noted = apply(tau)
        taus = tau.to(log_g.dtype)
    else:
        log_g, taus, *noted = tau(within=lambda: apply(None, *tau.whole_parameters()))
    return LogMeanExp(log_g, taus, dict(zip(names, noted, strict=True)))


class PrecomputedGrads:
    """Gradients formed in forward, which are right if backward brings a multiple of what was assumed.

    A mean, a sum, a loss scale, accumulation: each multiplies all rows by one factor. Anything else (a second
    loss on the same values, a penalty on temperatures) is noticed, and costs a second sweep.

    Args:
        assumed: the assumed gradient; None where no gradient adds up rows, so that each row is rescaled by itself and
            nothing need be assumed.
    """

    def __init__(self, assumed: GradOutput | None) -> None:
        self._assumed = assumed
        self._u: list[Tensor] = []
        self._v: list[Tensor] = []
        self.result: ChunkResult | None = None
        #: What the sweep multiplies into its rows.
        self.grad_output: GradOutput | None = None if assumed is None else self._record

    def _record(self, log_g: PerRow, tau: PerRow, rows: slice) -> tuple[PerRow, PerRow]:
        assert self._assumed is not None
        u, v = self._assumed(log_g, tau, rows)
        self._u.append(u)
        self._v.append(v)
        return u, v

    def rescaled(self, u: PerRow, v: PerRow, *, tau_predicted: bool) -> ChunkResult | None:
        """The gradients, or None if the assumption was wrong. Not to be called twice: it works in place.

        Args:
            u: dL/dlog_g.
            v: dL/dtau.
            tau_predicted: whether the sweep formed tau's gradient, so that v matters.
        """
        result = self.result
        assert result is not None
        if self._assumed is None:
            return replace(
                result, queries=None if result.queries is None else result.queries.mul_(u[:, None])
            )
        factor = self._factor(u, v, tau_predicted)
        if factor is None:
            return None
        if factor != 1.0:
            for gradient in (result.queries, result.keys, result.bias, *result.parameters):
                if gradient is not None:
                    gradient.mul_(factor)
        return result

    def _factor(self, u: PerRow, v: PerRow, tau_predicted: bool) -> float | None:
        if not len(u):
            return 1.0
        u0, v0 = torch.cat(self._u), torch.cat(self._v)
        factor = (u.double() @ u0.double()) / u0.double().square().sum()
        close = _close(u, u0, factor)
        if tau_predicted:
            close &= _close(v, v0, factor)
        number, proportional = torch.stack([factor, close.double()]).tolist()  # one wait for the device
        return number if proportional else None


def _close(actual: PerRow, assumed: PerRow, factor: Tensor) -> Tensor:
    expected = assumed.double() * factor
    tolerance = _ROUNDINGS * torch.finfo(actual.dtype).eps * expected.abs()
    return ((actual.double() - expected).abs() <= tolerance).all()


class _LogMeanExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: SweepPlan,
        assumed: GradOutput | None,
        records: bool,
        queries: Tensor,
        keys: Tensor,
        bias: Tensor | None,
        tau: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        needed = ctx.needs_input_grad[3:]
        # Leaves want gradients also where none are recorded.
        mask = GradMask(needed[0], needed[1], needed[2], any(needed[4:])) if records else GradMask()
        random = plan.predictor is not None and plan.predictor.training  # dropout, say
        ctx.random_state = RandomState(queries.device) if random else None
        # Without an assumption it is not known yet what each row will weigh in a sum over rows.
        now = GradMask() if mask.sums_over_rows and assumed is None else mask
        sweep = ChunkedForward(plan, queries, keys, bias, tau)
        ctx.saved_scores = None
        if now != mask and fits_cache(queries.shape[0] * keys.shape[0], sweep.work):
            ctx.saved_scores = queries.new_empty((queries.shape[0], keys.shape[0]), dtype=sweep.work)
        grads = PrecomputedGrads(assumed if now.sums_over_rows else None)
        result = grads.result = sweep.run(now, grads.grad_output, save_scores=ctx.saved_scores)
        ctx.grads = grads if now == mask else None
        ctx.plan, ctx.mask = plan, mask
        # Where only temperatures learn that are an input, their slope is all that backward reads.
        factors = (queries, keys, bias) if any(needed[:3]) or tau is None else (None, None, None)
        ctx.save_for_backward(*factors, tau, result.slope, *parameters)
        noted = tuple(result.statistics[name] for name in plan.statistics)
        ctx.mark_non_differentiable(*noted, *(() if tau is None else (result.tau,)))
        return result.log_g, result.tau, *noted

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        queries, keys, bias, tau, slope, *parameters = ctx.saved_tensors
        u, v = grads[0], grads[1]
        if queries is None:
            return None, None, None, None, None, None, (u * slope).to(tau.dtype)
        # Handed over once: a second backward through a retained graph sweeps again.
        precomputed, ctx.grads = ctx.grads, None
        result = None if precomputed is None else precomputed.rescaled(u, v, tau_predicted=tau is None)
        if result is None:
            again = contextlib.nullcontext() if ctx.random_state is None else ctx.random_state.restored()
            with again:
                sweep = ChunkedForward(ctx.plan, queries, keys, bias, tau)
                result = sweep.run(
                    ctx.mask, lambda log_g, tau, rows: (u[rows], v[rows]), saved_scores=ctx.saved_scores
                )
        tau_gradient = (u * slope).to(tau.dtype) if ctx.needs_input_grad[6] else None
        of_parameters = result.parameters or [None] * len(parameters)
        return (
            None,
            None,
            None,
            _cast(result.queries, queries),
            _cast(result.keys, keys),
            _cast(result.bias, bias),
            tau_gradient,
            *(_cast(gradient, p) for gradient, p in zip(of_parameters, parameters, strict=True)),
        )


def _cast(gradient: Tensor | None, x: Tensor | None) -> Tensor | None:
    """The gradient in its input's precision."""
    return None if gradient is None or x is None else gradient.to(x.dtype)
