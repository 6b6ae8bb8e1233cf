r"""Both sides of a block of pairs from one set of tiles: image rows and text rows share their scores.

Scores $s = q k^\top$ [n m] are computed in stripes of some rows by all columns. Row i's own column, `offset + i`, is
the pair's own score; it is left out of both sums. One stripe serves both sides:

    forward    s = q k^T                                              [rows m]  product 1
               row sums      sum_j e^((s_ij - row_max_i) / tau_i)     [rows]    each stripe has whole rows
               column sums   sum_i e^((s_ij - column_max_j) / tau_j)  [m]       running, over all stripes
    backward   G = u_i / tau_i p_ij + w_j / tau_j p'_ij               [rows m]  in place of the scores
               dq = G k                                               [rows d]  product 2
               dk += G^T q                                            [m d]     product 3

Both softmaxes are recomputed from their maxima and sums, so only numbers per row and per column are saved. G needs the
final column sums and therefore a second pass: three products if the scores fit the byte budget and are stored, four if
they are computed twice. On a GPU tiles replace the stripes (`pairs.tiled`).

Time over those products (pairs of width 512, moving averages, a temperature per sample; one thread of an AMD EPYC with
AVX2, torch 2.14, float32, backend cpu, 2026-11-24; docs/streaming.md has the method and the other libraries):

    |                                        | 4,096 pairs       | 8,192 pairs       |
    | scores stored, over three products     | 1.10 [1.09, 1.21] | 1.07 [1.00, 1.12] |
    | computed twice, over three products    | 1.52 [1.41, 1.58] | 1.46 [1.40, 1.53] |
    | computed twice, over four products     | 1.12              | 1.13              |

- Stored scores are turned into gradients 512 rows at a time; 256 rows gave 1.14 to 1.17 at 8,192 pairs.
- Elementwise passes take a few rows at a time (`row_groups`), so that these stay in the CPU's cache from pass to pass.
- Column sums are taken from each group of rows while it is in the cache, not from a second read of the stripe.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dro_temp._autograd import refuse_second_derivative, refuse_transforms, without_autocast
from dro_temp._pytree import pytree
from dro_temp._tensors import row_groups, work_dtype
from dro_temp._typing import Features, PerRow, Scores
from dro_temp.functional.statistics import NOT_AN_OUTCOME
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.protocol import Backend, ColumnSums, PairGradient, SideShares, SideSums
from dro_temp.kernels.exclusions import Exclusions
from dro_temp.kernels.memory import MIB, acquire, block_rows, fits_cache, release
from dro_temp.kernels.products import empty_contiguous, gradient_dtype, product

# Bytes of a stripe on a device.
STRIPE = 512 * MIB

# Stripes: scores of some rows with all columns, and the gradient that replaces them


@dataclass(frozen=True)
class PairBlock:
    """A pass over a block of pairs, without its tensors.

    Args:
        offset: index of the first row among the columns.
        backend: what computes on a stripe.
        exclusions: columns that groups exclude from a row's sum, and rows from a column's, or None.
        records_graph: whether autograd does.
    """

    offset: int
    backend: Backend
    exclusions: Exclusions | None = None
    records_graph: bool = field(default_factory=torch.is_grad_enabled)

    #: False if a pass would not read scores that were stored by an earlier one.
    stores: ClassVar[bool] = True

    def sum_rows(
        self,
        queries: Tensor,
        keys: Tensor,
        tau: PerRow,
        *,
        store: str | None,
        callback: Callable[[Scores], None] | None = None,
    ) -> tuple[SideSums, Scores | None]:
        """Sums of each row over all columns but its own, [n], and the scores if they are stored.

        Args:
            queries: [n d].
            keys: [m d].
            tau: temperature of each row.
            store: purpose (see `acquire`) of scores that are stored for a second pass, the rows' own overwritten;
                None: none are.
            callback: called with a few rows of scores at a time, while they are in the CPU's cache.
        """
        n, m, dtype = len(queries), len(keys), tau.dtype
        score = self.backend.scorer(queries, keys)
        height = block_rows(n, m * dtype.itemsize, queries.device, most=STRIPE) if store is None else n
        buffer = acquire(store or "scores", height, m, queries, dtype)  # [height m]
        paired_score, row_max, sum_exp, mean_excess = (queries.new_empty(n, dtype=dtype) for _ in range(4))
        for rows, column in self._stripes(queries, m * dtype.itemsize, stored=store is not None):
            out = buffer[: rows.stop - rows.start] if store is None else buffer[rows]
            scores = score(queries[rows], out)  # [rows m]
            paired_score[rows] = scores.gather(1, column).squeeze(1)
            if self.exclusions is not None:
                self.exclusions.fill_(scores, rows)
            scores.scatter_(1, column, NOT_AN_OUTCOME)
            for group in row_groups(scores):
                at = slice(rows.start + group.start, rows.start + group.stop)
                partials = self.backend.row_sums(scores[group], tau[at])
                assert partials.mean_excess is not None
                row_max[at], sum_exp[at] = partials.row_max, partials.sum_exp
                mean_excess[at] = partials.mean_excess
                if callback is not None:
                    callback(scores[group])
        if store is None:
            release("scores", buffer)
        excess = row_max - paired_score
        log_sum, slope = excess / tau + sum_exp.log(), -(mean_excess + excess) / tau.square()
        sums = SideSums(paired_score, row_max, sum_exp, mean_excess, log_sum, slope)
        return sums, None if store is None else buffer

    def sum_sides(
        self,
        queries: Tensor,
        keys: Tensor,
        tau_rows: PerRow,
        tau_columns: Tensor,
        column_paired_score: Tensor | None,
        *,
        store: str | None,
    ) -> tuple[SideSums, SideSums, Scores | None]:
        """Sums of each row and of each column, [n] and [m], and the scores if they are stored.

        Args:
            queries: [n d].
            keys: [m d].
            tau_rows: temperature of each row.
            tau_columns: temperature of each column.
            column_paired_score: of each column; None: that of the row, in a square block.
            store: see `sum_rows`.
        """
        zero = torch.zeros_like(tau_columns)
        columns = ColumnSums(torch.full_like(zero, -torch.inf), zero, zero.clone())
        add_to_columns = partial(self.backend.column_sums_, tau=tau_columns, sums=columns)
        rows, scores = self.sum_rows(queries, keys, tau_rows, store=store, callback=add_to_columns)
        if column_paired_score is None:
            column_paired_score = rows.paired_score
        # No rows: no sum, and a mean of zero.
        mean = columns.moment / columns.sum_exp.clamp(min=torch.finfo(tau_columns.dtype).tiny)
        log_sum = (columns.column_max - column_paired_score) / tau_columns + columns.sum_exp.log()
        slope = -(mean - column_paired_score) / tau_columns.square()
        maximum, sum_exp = columns.column_max, columns.sum_exp
        sums = SideSums(column_paired_score, maximum, sum_exp, mean - maximum, log_sum, slope)
        return rows, sums, scores

    def gradients(
        self, gradient: PairGradient, queries: Tensor, keys: Tensor, scores: Scores | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of queries and keys; stored scores are overwritten, others are computed again."""
        dtype = gradient.paired.dtype
        narrow = keys.to(gradient_dtype(keys))
        queries_grad, keys_grad = empty_contiguous(queries, dtype), empty_contiguous(keys, dtype)
        if not len(queries):
            keys_grad.zero_()  # no stripe will overwrite it
        for rows, logits_grad in self._gradient_stripes(gradient, queries, keys, scores):
            product(logits_grad, narrow, queries_grad[rows])
            first, x = rows.start == 0, queries[rows].to(dtype)
            self.backend.accumulate_(keys_grad, logits_grad, x, narrow.dtype, first=first)
        return queries_grad.to(queries.dtype), keys_grad.to(keys.dtype)

    def queries_gradient(
        self, gradient: PairGradient, queries: Tensor, keys: Tensor, scores: Scores | None
    ) -> Tensor:
        """The gradient of the queries alone."""
        narrow = keys.to(gradient_dtype(keys))
        queries_grad = empty_contiguous(queries, gradient.paired.dtype)
        for rows, logits_grad in self._gradient_stripes(gradient, queries, keys, scores):
            product(logits_grad, narrow, queries_grad[rows])
        return queries_grad.to(queries.dtype)

    def _stripes(self, queries: Tensor, row_bytes: int, *, stored: bool) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and their own columns, [rows 1]; more rows at a time if the scores are stored anyway."""
        n = queries.shape[0]
        step = block_rows(n, row_bytes, queries.device, stored=stored, most=STRIPE)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            yield rows, torch.arange(rows.start, rows.stop, device=queries.device)[:, None] + self.offset

    def _gradient_stripes(
        self, gradient: PairGradient, queries: Tensor, keys: Tensor, scores: Scores | None
    ) -> Iterator[tuple[slice, Scores]]:
        """Rows, and the gradient with respect to their scores, [rows m]."""
        n, m, dtype = queries.shape[0], keys.shape[0], gradient.paired.dtype
        score = self.backend.scorer(queries, keys)
        height = block_rows(n, m * dtype.itemsize, queries.device, most=STRIPE) if scores is None else 0
        buffer = acquire("scores", height, m, queries, dtype)
        of_rows, of_columns = gradient.rows, gradient.columns
        columns = (of_columns.tau, of_columns.maximum, of_columns.share)
        for rows, column in self._stripes(queries, m * dtype.itemsize, stored=scores is not None):
            out = buffer[: rows.stop - rows.start]
            stripe = score(queries[rows], out) if scores is None else scores[rows]
            for group in row_groups(stripe):
                at = slice(rows.start + group.start, rows.start + group.stop)
                sides = (of_rows.tau[at], of_rows.maximum[at], of_rows.share[at], *columns)
                self.backend.pair_logits_grad_(stripe[group], *sides)
            if self.exclusions is not None and scores is None:  # stored ones weigh nothing
                self.exclusions.fill_(stripe, rows, 0.0)
            yield rows, stripe.scatter_(1, column, gradient.paired[rows, None])
        release("scores", buffer)


def pair_block(
    queries: Features, keys: Features, offset: int, backend: Backend, exclusions: Exclusions | None = None
) -> PairBlock:
    """The pass for these features: by tiles where the backend has kernels that are faster for them."""
    fused = backend.fused_pairs
    if fused is None or not fused.takes(queries, keys):
        return PairBlock(offset, backend, exclusions)
    from dro_temp.kernels.pairs.tiled import TiledPairBlock

    return TiledPairBlock(offset, backend, exclusions)


def share_of(gradient: Tensor, sum_exp: Tensor, exclusions: Exclusions | None) -> Tensor:
    """Share of each of a side's sums in the gradient; zero where groups leave nothing to sum."""
    share = gradient / sum_exp
    return share if exclusions is None else share.masked_fill(sum_exp == 0.0, 0.0)


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
    dtype = work_dtype(queries, keys)
    paired_keys = keys[offset : offset + queries.shape[0]]
    return (queries.to(dtype) * paired_keys.to(dtype)).sum(1)


def pair_log_sums(
    queries: Features,
    keys: Features,
    tau_rows: PerRow,
    tau_columns: Tensor,
    *,
    offset: int = 0,
    own_columns: Tensor | None = None,
    exclusions: Exclusions | None = None,
    backend: Backend = torch_backend,
) -> PairLogSums:
    r"""Log-sums of both sides, from one pass over stripes of $s = q k^\top$.

    Row i's own column is `offset + i`; it is left out of both its row and its column. Backward forms
    $G_{ij} = \frac{u_i}{\tau_i} p_{ij} + \frac{w_j}{\tau_j} p'_{ij}$ stripe by stripe and multiplies it into both
    sides: three matrix products in all if the scores fit the byte budget, four if they are computed twice.

    Args:
        queries: this process's rows, [n d].
        keys: the columns, [m d], of all processes.
        tau_rows: temperature of each row, [n].
        tau_columns: temperature of each column, [m].
        offset: index of this process's first row among the columns.
        own_columns: each column's own score, [m]; None if the block is square: then they are the rows' own.
        exclusions: scores that groups leave out of both sums, with the rows' own columns as targets, or None. The sum
            of a row or column of which nothing is left means nothing, and passes on no gradient of zero.
        backend: what computes on a stripe.

    Raises:
        RuntimeError: under `torch.func` transforms, or for a second derivative.
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
    dtype = work_dtype(queries, keys)
    block = pair_block(queries, keys, offset, backend, exclusions)
    rows, columns = _LogSums.apply(  # type: ignore[no-untyped-call]
        block, queries, keys, own_columns, tau_rows.to(dtype), tau_columns.to(dtype)
    )
    return PairLogSums(rows, columns)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        block: PairBlock,
        queries: Tensor,
        keys: Tensor,
        column_paired_score: Tensor | None,
        tau_rows: Tensor,
        tau_columns: Tensor,
    ) -> tuple[Tensor, Tensor]:
        # Leaves require gradients even where no graph is recorded: nothing is stored for a backward that cannot come.
        has_backward = block.records_graph and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        stores = has_backward and block.stores and fits_cache(len(queries) * len(keys), tau_rows.dtype)
        rows, columns, ctx.scores = block.sum_sides(
            queries, keys, tau_rows, tau_columns, column_paired_score, store="pair scores" if stores else None
        )
        ctx.block, ctx.is_square = block, column_paired_score is None
        inputs = (queries, keys, tau_rows, tau_columns)
        sums = (rows.maximum, rows.sum_exp, columns.maximum, columns.sum_exp)
        ctx.save_for_backward(*inputs, *sums, rows.slope, columns.slope)
        return rows.log_sum, columns.log_sum

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        queries, keys, tau_rows, tau_columns, *sums, row_slope, column_slope = ctx.saved_tensors
        row_max, row_sum, column_max, column_sum = sums
        u, w = grads  # dL/d(log-sum) of rows, [n], and of columns, [m]
        a, b = u / tau_rows, w / tau_columns
        queries_grad: Tensor | None = None
        keys_grad: Tensor | None = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            # A paired score is subtracted in its row and, in a square block, in its column.
            paired_grad = -(a + b) if ctx.is_square else -a
            exclusions = ctx.block.exclusions
            of_rows = SideShares(tau_rows, row_max, share_of(a, row_sum, exclusions))
            of_columns = SideShares(tau_columns, column_max, share_of(b, column_sum, exclusions))
            gradient = PairGradient(paired_grad, of_rows, of_columns)
            # Overwritten here: a second backward through a retained graph computes the scores again.
            scores, ctx.scores = ctx.scores, None
            queries_grad, keys_grad = ctx.block.gradients(gradient, queries, keys, scores)
            if scores is not None:
                release("pair scores", scores)
        column_grad = None if ctx.is_square else -b
        return None, queries_grad, keys_grad, column_grad, u * row_slope, w * column_slope
