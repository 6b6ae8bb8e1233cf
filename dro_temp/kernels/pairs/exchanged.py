r"""Both sides of pairs that several processes share: only features and numbers per row are exchanged.

Each process has its own rows of both sides, x and y [n d], and the gathered features of all, [m d]. A feature gets
gradient as a row from its own process and as a column from every process. The second part would be a sum over processes
of [m d] gradients; instead every process forms it for its own features, from three numbers per row that are gathered:

    rows x    s = x all_y^T        [n m]  row sums of side x: image rows
    rows y    s = y all_x^T        [n m]  row sums of side y: text rows
    gather    tau, max, share             six numbers per pair, once per backward
    dx = G all_y, dy = G' all_x    [n d]  G holds both the row's own weights and those of its column's rows

Both stripes read whole rows, so there are no column sums to exchange in forward. The price is that each
side computes its own: four products of [n m d] if the scores of both sides fit the byte budget, six otherwise.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dro_temp._autograd import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp._tensors import work_dtype
from dro_temp._typing import Features, PerRow
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.protocol import Backend, PairGradient, SideShares
from dro_temp.kernels.exclusions import Exclusions
from dro_temp.kernels.memory import fits_cache, release
from dro_temp.kernels.pairs.local import PairBlock, pair_block, share_of

#: This process's rows -> those of all processes, in rank order; no gradient.
Gather: TypeAlias = Callable[[Tensor], Tensor]

# Purposes of stored scores, see `memory.acquire`.
_PURPOSES = ("scores of x", "scores of y")


def exchanged_log_sums(
    sides: tuple[Features, Features],
    everyone: tuple[Features, Features],
    taus: tuple[PerRow, PerRow],
    *,
    offset: int,
    gather: Gather,
    exclusions: tuple[Exclusions, Exclusions] | None = None,
    backend: Backend = torch_backend,
) -> tuple[PerRow, PerRow]:
    r"""$\log \sum_{j \neq i} e^{(s_{ij} - s_{ii}) / \tau_i}$ of this process's rows on both sides.

    A feature gets gradient from its own row, and as a column from every row of the other side, in whichever process.
    The second part is formed here: with this process's features x and all features y,

    $$\frac{\partial L}{\partial x_i}
    = \sum_j \left(\frac{u_i}{\tau_i} p_{ij} + \frac{w_j}{\tau_j} p'_{ij}\right) y_j,$$

    which takes three numbers of each row j elsewhere: its temperature, its largest score, and
    $w_j / (\tau_j \sum_i e_{ij})$. Gathering those replaces the sum over processes of both sides' gradients.

    Args:
        sides: this process's rows of each side, [n d].
        everyone: all processes' rows of each side, [m d], without gradient.
        taus: temperature of each row, of each side, [n].
        offset: index of this process's first row among all.
        gather: concatenates the rows of all processes; called once in backward, on every process.
        exclusions: what groups leave out of the sums of either side's rows, or None; on all processes alike.
        backend: what computes on a stripe.

    Raises:
        RuntimeError: under `torch.func` transforms, or for a second derivative.

    Example:
        >>> import torch
        >>> x, y, tau = torch.eye(3), torch.eye(3), torch.ones(3)
        >>> exchanged_log_sums((x, y), (x, y), (tau, tau), offset=0, gather=lambda rows: rows)[0]
        tensor([-0.3069, -0.3069, -0.3069])

    Source: arXiv 2407.01445 (FastCLIP), section 4, there with a constant number per row.
    """
    refuse_transforms()
    of_sides = (None, None) if exclusions is None else exclusions
    blocks = [pair_block(sides[0], everyone[1], offset, backend, of_side) for of_side in of_sides]
    dtype = work_dtype(*sides)
    first, second = _BothSides.apply(  # type: ignore[no-untyped-call]
        blocks, gather, *sides, *(x.detach() for x in everyone), *(tau.to(dtype) for tau in taus)
    )
    return first, second


class _BothSides(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        blocks: list[PairBlock],
        gather: Gather,
        x: Tensor,
        y: Tensor,
        all_x: Tensor,
        all_y: Tensor,
        tau_x: Tensor,
        tau_y: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.blocks, ctx.gather, dtype = blocks, gather, tau_x.dtype
        block = blocks[0]
        has_backward = block.records_graph and (ctx.needs_input_grad[2] or ctx.needs_input_grad[3])
        stores = has_backward and block.stores and fits_cache(2 * len(x) * len(all_x), dtype)
        first, scores_x = blocks[0].sum_rows(x, all_y, tau_x, store=_PURPOSES[0] if stores else None)
        second, scores_y = blocks[1].sum_rows(y, all_x, tau_y, store=_PURPOSES[1] if stores else None)
        ctx.scores = (scores_x, scores_y)  # [n m] each, or None
        sums = (first.maximum, first.sum_exp, second.maximum, second.sum_exp)
        ctx.save_for_backward(x, y, all_x, all_y, tau_x, tau_y, *sums, first.slope, second.slope)
        return first.log_sum, second.log_sum

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, y, all_x, all_y, tau_x, tau_y, *sums, slope_x, slope_y = ctx.saved_tensors
        max_x, sum_x, max_y, sum_y = sums
        u, w = grads  # dL/d(log-sum) of either side's rows, [n]
        a, b = u / tau_x, w / tau_y
        x_grad: Tensor | None = None
        y_grad: Tensor | None = None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            exclusions = ctx.blocks[0].exclusions
            rows_x = (tau_x, max_x, share_of(a, sum_x, exclusions))
            rows_y = (tau_y, max_y, share_of(b, sum_y, exclusions))
            columns = ctx.gather(torch.stack([*rows_x, *rows_y], 1)).unbind(1)  # six of [m]
            (scores_x, scores_y), ctx.scores = ctx.scores, (None, None)
            # Each pair's own score is in both of its rows, and both are in this process.
            paired_grad = -(a + b)
            of_x = PairGradient(paired_grad, SideShares(*rows_x), SideShares(*columns[3:]))
            of_y = PairGradient(paired_grad, SideShares(*rows_y), SideShares(*columns[:3]))
            x_grad = ctx.blocks[0].queries_gradient(of_x, x, all_y, scores_x)
            y_grad = ctx.blocks[1].queries_gradient(of_y, y, all_x, scores_y)
            for purpose, scores in zip(_PURPOSES, (scores_x, scores_y), strict=True):
                if scores is not None:
                    release(purpose, scores)
        return None, None, x_grad, y_grad, None, None, u * slope_x, w * slope_y
