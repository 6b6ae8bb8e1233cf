"""Both sides of a block of pairs from one set of tiles: image rows and text rows share their scores."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dro_temp._pytree import pytree
from dro_temp._typing import Features, PerRow
from dro_temp.kernels import pair_passes
from dro_temp.kernels.budget import fits_cache
from dro_temp.kernels.pair_passes import ColumnSums
from dro_temp.kernels.products import work_dtype
from dro_temp.kernels.refusals import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp.kernels.stripes import Coupling, PairBlock, PairPasses
from dro_temp.kernels.workspace import give_back


@pytree()
@dataclass(frozen=True)
class LogSums:
    r"""$\log \sum e^{(s - s_{\mathrm{own}}) / \tau}$ over the others, of each row and each column of a block.

    Args:
        rows: of each row, over all columns but its own.
        columns: of each column, over all rows of the block but its own. The blocks of several processes add up:
            `logaddexp` of theirs is that of the whole column.
    """

    rows: PerRow
    columns: Tensor


def own_scores(queries: Features, keys: Features, offset: int = 0) -> PerRow:
    """Score of each row with its own column, `offset + i`, in float32 or better.

    Example:
        >>> own_scores(torch.tensor([[1.0, 2.0]]), torch.tensor([[9.0, 9.0], [3.0, 4.0]]), offset=1)
        tensor([11.])
    """
    work = work_dtype(queries, keys)
    mine = keys[offset : offset + queries.shape[0]]
    return (queries.to(work) * mine.to(work)).sum(1)


def log_sums_of_pairs(
    queries: Features,
    keys: Features,
    tau_rows: PerRow,
    tau_columns: Tensor,
    *,
    offset: int = 0,
    own_columns: Tensor | None = None,
    passes: PairPasses = pair_passes,
) -> LogSums:
    r"""Log-sums of both sides, from one sweep over stripes of $s = q k^\top$.

    Row i's own column is `offset + i`; it is left out of both its row and its column. Backward forms
    $G_{ij} = \frac{u_i}{\tau_i} p_{ij} + \frac{w_j}{\tau_j} p'_{ij}$ stripe by stripe and multiplies it into both
    sides: three matrix products in all if the scores fit the byte budget, four if they are made twice.

    Args:
        queries: this process's rows, [n d].
        keys: the columns, [m d], of all processes.
        tau_rows: temperature of each row.
        tau_columns: temperature of each column, [m].
        offset: where this process's rows start among the columns.
        own_columns: each column's own score, [m]; None if the block is square, and rows say it.
        passes: the elementwise passes.

    Raises:
        RuntimeError: under `torch.func` transforms, or where a second derivative is asked for.
        ValueError: a block that is not square, without `own_columns`.

    Example:
        >>> import torch
        >>> x, y, tau = torch.eye(3), torch.eye(3), torch.ones(3)
        >>> log_sums_of_pairs(x, y, tau, tau).rows  # two others at distance one: log 2 - 1
        tensor([-0.3069, -0.3069, -0.3069])
    """
    refuse_transforms()
    if own_columns is None and len(queries) != len(keys):
        raise ValueError(
            f"expected as many rows as columns, or own_columns, received {len(queries)} rows and {len(keys)} "
            "columns. Pass the own scores of all columns, gathered from the processes that hold their rows."
        )
    work = work_dtype(queries, keys)
    block = PairBlock(offset, passes, torch.is_grad_enabled())
    rows, columns = _LogSums.apply(  # type: ignore[no-untyped-call]
        block, queries, keys, own_columns, tau_rows.to(work), tau_columns.to(work)
    )
    return LogSums(rows, columns)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        block: PairBlock,
        queries: Tensor,
        keys: Tensor,
        own_columns: Tensor | None,
        tau_rows: Tensor,
        tau_columns: Tensor,
    ) -> tuple[Tensor, Tensor]:
        n, m, work = queries.shape[0], keys.shape[0], tau_rows.dtype
        # Leaves want gradients also where none are recorded: nothing is kept for a backward that cannot come.
        coupled_later = block.records and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        keep = "kept" if coupled_later and fits_cache(n * m, work) else None
        sums = ColumnSums.start(tau_columns)
        of_rows = block.sum_rows(
            queries,
            keys,
            tau_rows,
            keep=keep,
            also=lambda scores: block.passes.sum_columns_(scores, tau_columns, sums),
        )
        own_of_columns = of_rows.own if own_columns is None else own_columns
        mean_columns = sums.moment / sums.total.clamp(min=torch.finfo(work).tiny)  # no rows: no sum
        slope_columns = -(mean_columns - own_of_columns) / tau_columns.square()
        ctx.own_is_ours = own_columns is None
        ctx.block, ctx.kept = block, of_rows.kept
        ctx.save_for_backward(
            queries,
            keys,
            tau_rows,
            tau_columns,
            of_rows.top,
            of_rows.total,
            sums.top,
            sums.total,
            of_rows.slope(tau_rows),
            slope_columns,
        )
        return (
            of_rows.log_sums(tau_rows),
            (sums.top - own_of_columns) / tau_columns + sums.total.log(),
        )

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        queries, keys, tau_rows, tau_columns, top, total, top_c, total_c, slope, slope_c = ctx.saved_tensors
        u, w = grads
        a, b = u / tau_rows, w / tau_columns
        found: tuple[Tensor | None, Tensor | None] = (None, None)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            own = -(a + b) if ctx.own_is_ours else -a
            coupling = Coupling(own, tau_rows, top, a / total, tau_columns, top_c, b / total_c)
            # A second backward through a retained graph computes the scores again.
            kept, ctx.kept = ctx.kept, None
            found = coupling.gradients(ctx.block, queries, keys, kept)
            if kept is not None:
                give_back("kept", kept)
        return None, *found, None if ctx.own_is_ours else -b, u * slope, w * slope_c
