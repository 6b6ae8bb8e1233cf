"""Both sides of pairs that several processes share, where only features and per-row numbers travel."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dro_temp._autograd import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp._tensors import work_dtype
from dro_temp._typing import Features, PerRow
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.protocol import Backend
from dro_temp.kernels.memory import fits_cache, release
from dro_temp.kernels.pairs.local import LogitsGradient, PairBlock

#: This process's rows -> those of all processes, in rank order; no gradient.
Gather: TypeAlias = Callable[[Tensor], Tensor]


def exchanged_log_sums(
    sides: tuple[Features, Features],
    everyone: tuple[Features, Features],
    taus: tuple[PerRow, PerRow],
    *,
    offset: int,
    gather: Gather,
    backend: Backend = torch_backend,
) -> tuple[PerRow, PerRow]:
    r"""$\log \sum_{j \neq i} e^{(s_{ij} - s_{ii}) / \tau_i}$ of this process's rows on both sides.

    A feature gets gradient from its own row, and as a column from every row of the other side, wherever that row is.
    The second part needs no other process to form it: with this process's features x and all features y,

    $$\frac{\partial L}{\partial x_i}
    = \sum_j \left(\frac{u_i}{\tau_i} p_{ij} + \frac{w_j}{\tau_j} p'_{ij}\right) y_j,$$

    where of each row j elsewhere three numbers are wanted: its temperature, its largest score, and
    $w_j / (\tau_j \sum_i e_{ij})$. Gathering those replaces the sum over processes of both sides' gradients.

    Args:
        sides: this process's rows of each side, [n d].
        everyone: all processes' rows of each side, [m d], without gradient.
        taus: temperature of each row, of each side.
        offset: where this process's rows start among all.
        gather: brings rows of all processes together; called once in backward, on every process.
        backend: what computes on a stripe.

    Raises:
        RuntimeError: under `torch.func` transforms, or where a second derivative is asked for.

    Example:
        >>> import torch
        >>> x, y, tau = torch.eye(3), torch.eye(3), torch.ones(3)
        >>> exchanged_log_sums((x, y), (x, y), (tau, tau), offset=0, gather=lambda rows: rows)[0]
        tensor([-0.3069, -0.3069, -0.3069])

    Source: arXiv 2407.01445 (FastCLIP), section 4, there with a constant number per row.
    """
    refuse_transforms()
    block = PairBlock(offset, backend, torch.is_grad_enabled())
    work = work_dtype(*sides)
    first, second = _BothSides.apply(  # type: ignore[no-untyped-call]
        block, gather, *sides, *(x.detach() for x in everyone), *(tau.to(work) for tau in taus)
    )
    return first, second


class _BothSides(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        block: PairBlock,
        gather: Gather,
        x: Tensor,
        y: Tensor,
        all_x: Tensor,
        all_y: Tensor,
        tau_x: Tensor,
        tau_y: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.block, ctx.gather, work = block, gather, tau_x.dtype
        grad_later = block.records and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3])
        keeps = grad_later and fits_cache(2 * len(x) * len(all_x), work)
        first = block.sum_rows(x, all_y, tau_x, keep="kept" if keeps else None)
        second = block.sum_rows(y, all_x, tau_y, keep="kept too" if keeps else None)
        ctx.kept = (first.kept, second.kept)
        sums = (first.top, first.total, second.top, second.total)
        ctx.save_for_backward(
            x, y, all_x, all_y, tau_x, tau_y, *sums, first.slope(tau_x), second.slope(tau_y)
        )
        return first.log_sums(tau_x), second.log_sums(tau_y)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, y, all_x, all_y, tau_x, tau_y, top_x, total_x, top_y, total_y, slope_x, slope_y = ctx.saved_tensors
        u, w = grads
        a, b = u / tau_x, w / tau_y
        to_x: Tensor | None = None
        to_y: Tensor | None = None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            mine = torch.stack([tau_x, top_x, a / total_x, tau_y, top_y, b / total_y], 1)
            theirs = ctx.gather(mine).unbind(1)
            of_x, of_y = tuple(mine.unbind(1)[:3]), tuple(mine.unbind(1)[3:])
            (kept_x, kept_y), ctx.kept = ctx.kept, (None, None)
            # Each pair's own score is in both of its rows, and both are here.
            to_x = LogitsGradient(-(a + b), *of_x, *theirs[3:]).pull(ctx.block, x, all_y, kept_x)
            to_y = LogitsGradient(-(a + b), *of_y, *theirs[:3]).pull(ctx.block, y, all_x, kept_y)
            for purpose, kept in (("kept", kept_x), ("kept too", kept_y)):
                if kept is not None:
                    release(purpose, kept)
        return None, None, to_x, to_y, None, None, u * slope_x, w * slope_y
