"""Log-mean-exp of rows of products, block by block: the score matrix never exists."""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, RowIndex
from dro_temp.functional.transforms import Scale, ScoreTransform
from dro_temp.kernels import passes as plain
from dro_temp.kernels.budget import fits_cache
from dro_temp.kernels.gradients import Needs
from dro_temp.kernels.randomness import Randomness
from dro_temp.kernels.refusals import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp.kernels.rows import Expected, LogMeanExp, Products, Statistic, TauOf
from dro_temp.kernels.speculation import Speculation
from dro_temp.kernels.sweep import RowPasses, Sweep


def log_mean_exp_rows(
    products: Products,
    tau: PerRow | TauOf,
    *,
    expected: Expected | None = None,
    statistics: Collection[Statistic] = (),
    passes: RowPasses = plain,
) -> LogMeanExp:
    r"""$\log g_i = \log \frac1m \sum_j e^{(s_{ij} - s_{i t_i}) / \tau_i}$ of each row, without the score matrix.

    Scores are made a block of rows at a time, in one reused buffer. With `expected`, every gradient is formed
    in that same sweep and backward only rescales it: three matrix products in all, as many as a loss needs that
    holds the score matrix. If something else comes back than was expected (or nothing was), backward sweeps
    again: four products, or three if the scores fit the byte budget.

    Args:
        products: what is scored.
        tau: temperatures, or how to predict them from a block of scores.
        expected: the gradient that will come back for each row, up to one factor for all.
        statistics: what to note of each row on the way.
        passes: the passes over a block.

    Raises:
        RuntimeError: under `torch.func` transforms, or where a second derivative is asked for.

    Example:
        >>> import torch
        >>> p = Products(torch.randn(4, 8), torch.randn(100, 8), torch.zeros(4, dtype=torch.long))
        >>> found = log_mean_exp_rows(p, torch.ones(4), statistics=("entropy",))
        >>> found.log_g.shape, sorted(found.statistics)
        (torch.Size([4]), ['entropy'])
    """
    refuse_transforms()
    p = products
    if isinstance(p.transform, Scale):
        # Part of the product, where it costs nothing. (A scaled query in low precision would lose digits.)
        factor = p.transform.factor
        bias = (
            None if p.bias is None else p.bias.to(torch.promote_types(p.bias.dtype, torch.float32)) * factor
        )
        p = replace(p, bias=bias, transform=None, scale=p.scale * factor)
    names = tuple(dict.fromkeys(statistics))
    given, tau_of = (tau, None) if isinstance(tau, Tensor) else (None, tau)
    plan = _Plan(
        p.target, p.transform, p.target_in_support, p.scale, tau_of, passes, names, torch.is_grad_enabled()
    )
    parameters = () if tau_of is None else tau_of.parameters
    log_g, predicted, *noted = _LogMeanExp.apply(  # type: ignore[no-untyped-call]
        plan, expected, p.queries, p.keys, p.bias, given, *parameters
    )
    taus = predicted if given is None else given.to(log_g.dtype)
    return LogMeanExp(log_g, taus, dict(zip(names, noted, strict=True)))


@dataclass(frozen=True)
class _Plan:
    """A sweep without its tensors: those belong to autograd, which may free or recompute them."""

    target: RowIndex
    transform: ScoreTransform | None
    target_in_support: bool
    scale: float
    tau_of: TauOf | None
    passes: RowPasses
    names: tuple[Statistic, ...]
    records: bool  #: whether autograd does

    def sweep(self, queries: Features, keys: Features, bias: PerRow | None, tau: PerRow | None) -> Sweep:
        products = Products(
            queries, keys, self.target, bias, self.transform, self.target_in_support, self.scale
        )
        source = self.tau_of if tau is None else tau
        assert source is not None
        return Sweep(products, source, self.passes, frozenset(self.names))


class _LogMeanExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        expected: Expected | None,
        queries: Tensor,
        keys: Tensor,
        bias: Tensor | None,
        tau: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[2:]
        # Leaves want gradients also where none are recorded.
        needs = Needs(wanted[0], wanted[1], wanted[2], any(wanted[4:])) if plan.records else Needs()
        predicts_randomly = plan.tau_of is not None and plan.tau_of.random
        ctx.randomness = Randomness(queries.device) if predicts_randomly else None
        # Without an expectation it is not known yet what each row will weigh in a sum over rows.
        now = Needs() if needs.sums_over_rows and expected is None else needs
        sweep = plan.sweep(queries, keys, bias, tau)
        ctx.kept = None
        if now != needs and fits_cache(queries.shape[0] * keys.shape[0], sweep.work):
            ctx.kept = queries.new_empty((queries.shape[0], keys.shape[0]), dtype=sweep.work)
        speculation = Speculation(expected if now.sums_over_rows else None)
        swept = sweep.run(now, speculation.upstream, keep=ctx.kept)
        ctx.speculation = speculation.filled(swept) if now == needs else None
        ctx.plan, ctx.needs = plan, needs
        # Where only temperatures that were given learn, their slope is all that backward reads.
        factors = (queries, keys, bias) if any(wanted[:3]) or tau is None else (None, None, None)
        ctx.save_for_backward(*factors, tau, swept.slope, *parameters)
        noted = tuple(swept.statistics[name] for name in plan.names)
        ctx.mark_non_differentiable(*noted, *(() if tau is None else (swept.tau,)))
        return swept.log_g, swept.tau, *noted

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        queries, keys, bias, tau, slope, *parameters = ctx.saved_tensors
        u, v = grads[0], grads[1]
        if queries is None:
            return None, None, None, None, None, (u * slope).to(tau.dtype)
        # Handed over once: a second backward through a retained graph sweeps again.
        speculation, ctx.speculation = ctx.speculation, None
        found = None if speculation is None else speculation.rescaled(u, v, tau_predicted=tau is None)
        if found is None:
            again = contextlib.nullcontext() if ctx.randomness is None else ctx.randomness.replayed()
            with again:
                sweep = ctx.plan.sweep(queries, keys, bias, tau)
                found = sweep.run(ctx.needs, lambda log_g, tau, rows: (u[rows], v[rows]), kept=ctx.kept)
        tau_gradient = (u * slope).to(tau.dtype) if ctx.needs_input_grad[5] else None
        from_parameters = found.parameters or [None] * len(parameters)
        return (
            None,
            None,
            _in(found.queries, queries),
            _in(found.keys, keys),
            _in(found.bias, bias),
            tau_gradient,
            *(_in(gradient, q) for gradient, q in zip(from_parameters, parameters, strict=True)),
        )


def _in(gradient: Tensor | None, x: Tensor | None) -> Tensor | None:
    """The gradient in its input's precision."""
    return None if gradient is None or x is None else gradient.to(x.dtype)
