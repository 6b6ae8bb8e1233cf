"""Both sides of a block of pairs from one set of tiles: image rows and text rows share their scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, Scores
from dro_temp.kernels import pair_passes
from dro_temp.kernels.budget import block_rows, fits_cache
from dro_temp.kernels.pair_passes import ColumnSums, RowSums
from dro_temp.kernels.passes import NOT_AN_OUTCOME, row_groups
from dro_temp.kernels.products import accumulate_product, gradient_dtype, product, score_dtype
from dro_temp.kernels.refusals import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp.kernels.workspace import borrow, give_back


class PairPasses(Protocol):
    """The elementwise passes over a stripe of scores; the module `pair_passes` is one."""

    def sum_rows(self, scores: Scores, tau: PerRow, weights: Scores, spare: Scores) -> RowSums:
        """Sums of each row; the scores stay."""

    def sum_columns_(
        self, scores: Scores, tau: Tensor, sums: ColumnSums, weights: Scores, spare: Scores
    ) -> None:
        """Sums of each column, added to what there is; the scores stay."""

    def couple_(
        self,
        scores: Scores,
        tau_rows: PerRow,
        top_rows: PerRow,
        share_rows: PerRow,
        tau_columns: Tensor,
        top_columns: Tensor,
        share_columns: Tensor,
        spare: Scores,
    ) -> Scores:
        """Gradient with respect to the scores, in their place."""


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
    work = _work(queries, keys)
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
        _Block(offset, passes, torch.is_grad_enabled()),
        queries,
        keys,
        own,
        own_columns,
        tau_rows.to(own.dtype),
        tau_columns.to(own.dtype),
    )
    return LogSums(rows, columns)


def _work(queries: Tensor, keys: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)


@dataclass(frozen=True)
class _Block:
    """A sweep without its tensors."""

    offset: int
    passes: PairPasses
    records: bool  #: whether autograd does

    def stripes(self, queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and the columns that are their own."""
        n, work = queries.shape[0], _work(queries, keys)
        step = block_rows(n, keys.shape[0], work, queries.device)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            yield rows, torch.arange(rows.start, rows.stop, device=queries.device)[:, None] + self.offset

    def score(self, queries: Tensor, keys: Tensor, rows: slice, own: Tensor, out: Scores) -> Scores:
        scores = out[: rows.stop - rows.start]
        product(queries[rows], keys.T, scores)
        return scores.scatter_(1, own, NOT_AN_OUTCOME)


class _Kept:
    """Weights of both sides, kept from forward to backward; those of columns relative to their stripe's tops."""

    def __init__(self, n: int, m: int, like: Tensor, dtype: torch.dtype) -> None:
        self.rows = borrow("row weights", n, m, like, dtype)
        self.columns = borrow("column weights", n, m, like, dtype)
        self.tops: list[Tensor] = []

    def give_back(self) -> None:
        """Not needed any more."""
        give_back("row weights", self.rows)
        give_back("column weights", self.columns)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        block: _Block,
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
        scores_out, spare_out, weights_out = (queries.new_empty((step, m), dtype=work) for _ in range(3))
        wanted = ctx.needs_input_grad
        kept = (
            _Kept(n, m, queries, work) if (wanted[1] or wanted[2]) and fits_cache(2 * n * m, work) else None
        )
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
            if matrix is not scores_out or purpose == "scores":
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
            coupling = _Coupling(tau_rows, top, a / total, tau_columns, top_c, b / total_c)
            # A second backward through a retained graph computes the scores again.
            kept, ctx.kept = ctx.kept, None
            found = coupling.gradients(ctx.block, queries, keys, kept)
            if kept is not None:
                kept.give_back()
        return None, *found, -a, -b, u * slope, w * slope_c


@dataclass(frozen=True)
class _Coupling:
    """What turns scores into the gradient with respect to them."""

    tau_rows: Tensor
    top_rows: Tensor
    share_rows: Tensor
    tau_columns: Tensor
    top_columns: Tensor
    share_columns: Tensor

    def gradients(
        self, block: _Block, queries: Tensor, keys: Tensor, kept: _Kept | None
    ) -> tuple[Tensor, Tensor]:
        n, m, work = queries.shape[0], keys.shape[0], self.tau_rows.dtype
        wide, narrow = keys.to(score_dtype(keys)), keys.to(gradient_dtype(keys))
        step = block_rows(n, m, work, queries.device)
        out = borrow("scores", step, m, queries, work)
        spare = borrow("spare", row_groups(out)[0].stop if n else 0, m, queries, work)
        to_queries = torch.empty_like(queries, dtype=work)
        # The first stripe overwrites it; without rows there is none.
        to_keys = torch.empty_like(keys, dtype=work) if n else torch.zeros_like(keys, dtype=work)
        tops = iter(() if kept is None else kept.tops)
        for rows, mine in block.stripes(queries, keys):
            coupled = out[: rows.stop - rows.start]
            if kept is None:
                block.score(queries, wide, rows, mine, out)
            for group in row_groups(coupled):
                at = slice(rows.start + group.start, rows.start + group.stop)
                if kept is None:
                    self._couple(block.passes, coupled[group], at, spare[: group.stop - group.start])
                else:
                    self._recall(kept, next(tops), at, coupled[group])
            product(coupled, narrow, to_queries[rows])
            first = rows.start == 0
            accumulate_product(to_keys, coupled.T, queries[rows].to(work), narrow.dtype, first=first)
        give_back("scores", out)
        give_back("spare", spare)
        return to_queries.to(queries.dtype), to_keys.to(keys.dtype)

    def _couple(self, passes: PairPasses, scores: Scores, rows: slice, spare: Scores) -> Scores:
        return passes.couple_(
            scores,
            self.tau_rows[rows],
            self.top_rows[rows],
            self.share_rows[rows],
            self.tau_columns,
            self.top_columns,
            self.share_columns,
            spare,
        )

    def _recall(self, kept: _Kept, tops: Tensor, rows: slice, out: Scores) -> None:
        # Column weights are relative to the tops of their time.
        late = ((tops - self.top_columns) / self.tau_columns).exp()
        torch.mul(kept.rows[rows], self.share_rows[rows, None], out=out)
        out.addcmul_(kept.columns[rows], self.share_columns * late)
