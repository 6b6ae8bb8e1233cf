"""Both sides of a block of pairs from one set of tiles: image rows and text rows share their scores."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow
from dro_temp.kernels import pair_passes
from dro_temp.kernels.budget import block_rows, fits_cache
from dro_temp.kernels.pair_passes import ColumnSums
from dro_temp.kernels.passes import row_groups
from dro_temp.kernels.products import score_dtype, work_dtype
from dro_temp.kernels.refusals import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp.kernels.stripes import Coupling, KeptWeights, PairBlock, PairPasses
from dro_temp.kernels.workspace import borrow, give_back


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
    sides: three matrix products in all if what the sums need fits the byte budget, four if scores are made twice.

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
    own = own_scores(queries, keys, offset)
    if own_columns is None:
        if len(own) != len(keys):
            raise ValueError(
                f"expected as many rows as columns, or own_columns, received {len(own)} rows and {len(keys)} "
                "columns. Pass the own scores of all columns, gathered from the processes that hold their rows."
            )
        own_columns = own
    rows, columns = _LogSums.apply(  # type: ignore[no-untyped-call]
        PairBlock(offset, passes, torch.is_grad_enabled()),
        queries,
        keys,
        own,
        own_columns,
        tau_rows.to(own.dtype),
        tau_columns.to(own.dtype),
    )
    return LogSums(rows, columns)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        block: PairBlock,
        queries: Tensor,
        keys: Tensor,
        own: Tensor,
        own_columns: Tensor,
        tau_rows: Tensor,
        tau_columns: Tensor,
    ) -> tuple[Tensor, Tensor]:
        n, m, work = queries.shape[0], keys.shape[0], own.dtype
        step = block_rows(n, m, work, queries.device)
        wide = keys.to(score_dtype(keys))
        scores_out = borrow("scores", step, m, queries, work)
        group_rows = row_groups(scores_out)[0].stop if n else 0
        spare_out = borrow("spare", group_rows, m, queries, work)
        weights_out = borrow("weights", group_rows, m, queries, work)
        # Leaves want gradients also where none are recorded: nothing is kept for a backward that cannot come.
        coupled_later = block.records and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        fits = coupled_later and fits_cache(2 * n * m, work)
        kept = KeptWeights(n, m, queries, work) if fits else None
        top, total, excess = (torch.empty_like(own) for _ in range(3))
        sums = ColumnSums.start(own_columns)
        for rows, mine in block.stripes(queries, keys):
            scores = block.score(queries, wide, rows, mine, scores_out)
            for group in row_groups(scores):
                part, spare = scores[group], spare_out[: group.stop - group.start]
                at = slice(rows.start + group.start, rows.start + group.stop)
                weights = weights_out[: len(part)] if kept is None else kept.rows[at]
                found = block.passes.sum_rows(part, tau_rows[at], weights, spare)
                top[at], total[at], excess[at] = found.top, found.total, found.excess
                weights = weights_out[: len(part)] if kept is None else kept.columns[at]
                block.passes.sum_columns_(part, tau_columns, sums, weights, spare)
                if kept is not None:
                    kept.tops.append(sums.top.clone())
        slope_rows = -(excess + (top - own)) / tau_rows.square()
        for purpose, matrix in (("scores", scores_out), ("spare", spare_out), ("weights", weights_out)):
            give_back(purpose, matrix)
        mean_columns = sums.moment / sums.total.clamp(min=torch.finfo(work).tiny)  # no rows: no sum
        slope_columns = -(mean_columns - own_columns) / tau_columns.square()
        ctx.block, ctx.kept = block, kept
        ctx.save_for_backward(
            queries, keys, tau_rows, tau_columns, top, total, sums.top, sums.total, slope_rows, slope_columns
        )
        return (
            (top - own) / tau_rows + total.log(),
            (sums.top - own_columns) / tau_columns + sums.total.log(),
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
            coupling = Coupling(tau_rows, top, a / total, tau_columns, top_c, b / total_c)
            # A second backward through a retained graph computes the scores again.
            kept, ctx.kept = ctx.kept, None
            found = coupling.gradients(ctx.block, queries, keys, kept)
            if kept is not None:
                kept.give_back()
        return None, *found, -a, -b, u * slope, w * slope_c
