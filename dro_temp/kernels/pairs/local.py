"""Both sides of a block of pairs from one set of tiles: image rows and text rows share their scores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dro_temp._autograd import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp._pytree import pytree
from dro_temp._tensors import row_groups, work_dtype
from dro_temp._typing import Features, PerRow, Scores
from dro_temp.functional.statistics import NOT_AN_OUTCOME
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.protocol import Backend, ColumnSums
from dro_temp.kernels.memory import acquire, block_rows, fits_cache, release
from dro_temp.kernels.products import empty_contiguous, gradient_dtype, product

# Stripes: some rows by all columns, made and turned into gradients


@dataclass(frozen=True)
class RowsOfPairs:
    """Sums of a block's rows over all columns but their own.

    Args:
        own: score of each row with its own column.
        top: largest other score.
        total: sum of the others' weights.
        excess: mean of the others' scores under the weights, minus `top`.
        kept: all scores, the own ones overwritten, or None.
    """

    own: Tensor
    top: Tensor
    total: Tensor
    excess: Tensor
    kept: Scores | None

    def log_sums(self, tau: PerRow) -> PerRow:
        """Relative to the own score."""
        return (self.top - self.own) / tau + self.total.log()

    def slope(self, tau: PerRow) -> PerRow:
        """Their derivative with respect to tau."""
        return -(self.excess + (self.top - self.own)) / tau.square()


@dataclass(frozen=True)
class PairBlock:
    """A sweep without its tensors."""

    offset: int
    backend: Backend
    records: bool  #: whether autograd does

    def stripes(self, queries: Tensor, keys: Tensor, *, kept: bool) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and the columns that are their own; more rows at a time if the scores are kept anyway."""
        n, work = queries.shape[0], work_dtype(queries, keys)
        step = block_rows(n, keys.shape[0], work, queries.device, kept=kept)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            yield rows, torch.arange(rows.start, rows.stop, device=queries.device)[:, None] + self.offset

    def sum_rows(
        self,
        queries: Tensor,
        keys: Tensor,
        tau: PerRow,
        *,
        keep: str | None,
        also: Callable[[Scores], None] | None = None,
    ) -> RowsOfPairs:
        """Sweep once.

        Args:
            queries: [n d].
            keys: [m d].
            tau: temperature of each row.
            keep: the purpose (see `acquire`) of scores that are kept for a second sweep; None: none are.
            also: called with some rows of scores at a time, while they are in the processor's cache.
        """
        n, m, work = len(queries), len(keys), tau.dtype
        score = self.backend.scorer(queries, keys)
        height = block_rows(n, m, work, queries.device) if keep is None else n
        buffer = acquire(keep or "scores", height, m, queries, work)
        own, top, total, excess = (queries.new_empty(n, dtype=work) for _ in range(4))
        for rows, column in self.stripes(queries, keys, kept=keep is not None):
            out = buffer[: rows.stop - rows.start] if keep is None else buffer[rows]
            scores = score(queries[rows], out)
            own[rows] = scores.gather(1, column).squeeze(1)
            scores.scatter_(1, column, NOT_AN_OUTCOME)
            for group in row_groups(scores):
                at = slice(rows.start + group.start, rows.start + group.stop)
                partials = self.backend.row_sums(scores[group], tau[at])
                assert partials.mean_excess is not None
                top[at], total[at], excess[at] = partials.row_max, partials.sum_exp, partials.mean_excess
                if also is not None:
                    also(scores[group])
        if keep is None:
            release("scores", buffer)
        return RowsOfPairs(own, top, total, excess, None if keep is None else buffer)


@dataclass(frozen=True)
class LogitsGradient:
    """What turns scores into the gradient with respect to them; `own` is that of each row's own score."""

    own: Tensor
    tau_rows: Tensor
    max_rows: Tensor
    share_rows: Tensor
    tau_columns: Tensor
    max_columns: Tensor
    share_columns: Tensor

    def gradients(
        self, block: PairBlock, queries: Tensor, keys: Tensor, kept: Scores | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of queries and keys; scores that were kept are consumed, else they are computed again."""
        n, work = queries.shape[0], self.tau_rows.dtype
        narrow = keys.to(gradient_dtype(keys))
        to_queries, to_keys = empty_contiguous(queries, work), empty_contiguous(keys, work)
        if not n:
            to_keys.zero_()  # no stripe will come to overwrite it
        for rows, grads in self._logits_grads(block, queries, keys, kept):
            product(grads, narrow, to_queries[rows])
            first = rows.start == 0
            block.backend.accumulate_(to_keys, grads, queries[rows].to(work), narrow.dtype, first=first)
        return to_queries.to(queries.dtype), to_keys.to(keys.dtype)

    def pull(self, block: PairBlock, queries: Tensor, keys: Tensor, kept: Scores | None) -> Tensor:
        """The gradient of the queries alone."""
        narrow = keys.to(gradient_dtype(keys))
        to_queries = empty_contiguous(queries, self.tau_rows.dtype)
        for rows, grads in self._logits_grads(block, queries, keys, kept):
            product(grads, narrow, to_queries[rows])
        return to_queries.to(queries.dtype)

    def _logits_grads(
        self, block: PairBlock, queries: Tensor, keys: Tensor, kept: Scores | None
    ) -> Iterator[tuple[slice, Scores]]:
        """Gradient with respect to the scores, stripe by stripe."""
        n, m, work = queries.shape[0], keys.shape[0], self.tau_rows.dtype
        score = block.backend.scorer(queries, keys)
        height = block_rows(n, m, work, queries.device) if kept is None else 0
        buffer = acquire("scores", height, m, queries, work)
        for rows, column in block.stripes(queries, keys, kept=kept is not None):
            out = buffer[: rows.stop - rows.start]
            grads = score(queries[rows], out) if kept is None else kept[rows]
            for group in row_groups(grads):
                self._logits_grad(
                    block.backend, grads[group], slice(rows.start + group.start, rows.start + group.stop)
                )
            yield rows, grads.scatter_(1, column, self.own[rows, None])
        release("scores", buffer)

    def _logits_grad(self, backend: Backend, scores: Scores, rows: slice) -> Scores:
        return backend.pair_logits_grad_(
            scores,
            self.tau_rows[rows],
            self.max_rows[rows],
            self.share_rows[rows],
            self.tau_columns,
            self.max_columns,
            self.share_columns,
        )


# Both sides as one node of the autograd graph


@pytree()
@dataclass(frozen=True)
class PairLogSums:
    r"""$\log \sum e^{(s - s_{\mathrm{own}}) / \tau}$ over the others, of each row and each column of a block.

    Args:
        rows: of each row, over all columns but its own.
        columns: of each column, over all rows of the block but its own. The blocks of several processes add up:
            `logaddexp` of theirs is that of the whole column.
    """

    rows: PerRow
    columns: Tensor


def paired_scores(queries: Features, keys: Features, offset: int = 0) -> PerRow:
    """Score of each row with its own column, `offset + i`, in float32 or better.

    Example:
        >>> paired_scores(torch.tensor([[1.0, 2.0]]), torch.tensor([[9.0, 9.0], [3.0, 4.0]]), offset=1)
        tensor([11.])
    """
    work = work_dtype(queries, keys)
    mine = keys[offset : offset + queries.shape[0]]
    return (queries.to(work) * mine.to(work)).sum(1)


def pair_log_sums(
    queries: Features,
    keys: Features,
    tau_rows: PerRow,
    tau_columns: Tensor,
    *,
    offset: int = 0,
    own_columns: Tensor | None = None,
    backend: Backend = torch_backend,
) -> PairLogSums:
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
        backend: what computes on a stripe.

    Raises:
        RuntimeError: under `torch.func` transforms, or where a second derivative is asked for.
        ValueError: a block that is not square, without `own_columns`.

    Example:
        >>> import torch
        >>> x, y, tau = torch.eye(3), torch.eye(3), torch.ones(3)
        >>> pair_log_sums(x, y, tau, tau).rows  # two others at distance one: log 2 - 1
        tensor([-0.3069, -0.3069, -0.3069])
    """
    refuse_transforms()
    if own_columns is None and len(queries) != len(keys):
        raise ValueError(
            f"expected as many rows as columns, or own_columns, received {len(queries)} rows and {len(keys)} "
            "columns. Pass the own scores of all columns, gathered from the processes that hold their rows."
        )
    work = work_dtype(queries, keys)
    block = PairBlock(offset, backend, torch.is_grad_enabled())
    rows, columns = _LogSums.apply(  # type: ignore[no-untyped-call]
        block, queries, keys, own_columns, tau_rows.to(work), tau_columns.to(work)
    )
    return PairLogSums(rows, columns)


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
        grad_later = block.records and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        keep = "kept" if grad_later and fits_cache(n * m, work) else None
        zero = torch.zeros_like(tau_columns)
        sums = ColumnSums(torch.full_like(zero, -torch.inf), zero, zero.clone())
        of_rows = block.sum_rows(
            queries,
            keys,
            tau_rows,
            keep=keep,
            also=partial(block.backend.column_sums_, tau=tau_columns, sums=sums),
        )
        own_of_columns = of_rows.own if own_columns is None else own_columns
        mean_columns = sums.moment / sums.sum_exp.clamp(min=torch.finfo(work).tiny)  # no rows: no sum
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
            sums.column_max,
            sums.sum_exp,
            of_rows.slope(tau_rows),
            slope_columns,
        )
        return (
            of_rows.log_sums(tau_rows),
            (sums.column_max - own_of_columns) / tau_columns + sums.sum_exp.log(),
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
            gradient_of_logits = LogitsGradient(
                own, tau_rows, top, a / total, tau_columns, top_c, b / total_c
            )
            # A second backward through a retained graph computes the scores again.
            kept, ctx.kept = ctx.kept, None
            found = gradient_of_logits.gradients(ctx.block, queries, keys, kept)
            if kept is not None:
                release("kept", kept)
        return None, *found, None if ctx.own_is_ours else -b, u * slope, w * slope_c
