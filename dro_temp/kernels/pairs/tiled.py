r"""A block of pairs on a GPU: tiles of scores that are reduced, or turned into gradients, before they leave the chip.

    sums       one tiled product, both sides' sums              scores never in memory
    gradient   the tiles once more -> G [rows m]                 in the precision of products 2 and 3
               dq = G k                             [rows d]     product 2
               dk += G^T q                          [m d]        product 3, adding inside the product

Four products instead of the three of stored scores, but no pass over [n m] in float32. Memory: G of a stripe of rows.

float16 alone is scaled by a power of two, since shares of a row may be below its smallest number.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.backends.protocol import FusedPairs, Groups, PairGradient, SideShares, SideSums
from dro_temp.kernels.memory import acquire, block_rows, release
from dro_temp.kernels.pairs.local import STRIPE, PairBlock
from dro_temp.kernels.products import empty_contiguous, multiply


class TiledPairBlock(PairBlock):
    """A pass by tiles; see `PairBlock`."""

    stores = False

    @property
    def _kernels(self) -> FusedPairs:
        assert self.backend.fused_pairs is not None
        return self.backend.fused_pairs

    def _groups(self, rows: slice) -> Groups | None:
        return None if self.exclusions is None else self.exclusions.groups(rows)

    def sum_rows(
        self,
        queries: Tensor,
        keys: Tensor,
        tau: PerRow,
        *,
        store: str | None,
        callback: Callable[[Scores], None] | None = None,
    ) -> tuple[SideSums, None]:
        """See `PairBlock.sum_rows`; nothing is stored."""
        assert store is None
        assert callback is None
        sums = _empty_sums(tau)
        for rows in heights_of(queries, keys):
            part, offset = _rows_of(sums, rows), self.offset + rows.start
            groups = self._groups(rows)
            self._kernels.sum_tiles(
                queries[rows], keys, tau[rows], None, offset=offset, rows=part, groups=groups
            )
        return sums, None

    def sum_sides(
        self,
        queries: Tensor,
        keys: Tensor,
        tau_rows: PerRow,
        tau_columns: Tensor,
        column_paired_score: Tensor | None,
        *,
        store: str | None,
    ) -> tuple[SideSums, SideSums, None]:
        """See `PairBlock.sum_sides`; nothing is stored."""
        assert store is None
        rows_sums = _empty_sums(tau_rows)
        # In a square block each row's own score is known before its column's last merge.
        own = rows_sums.paired_score if column_paired_score is None else column_paired_score
        columns = _empty_sums(tau_columns, own)
        if not len(queries):
            self._kernels.merge_tiles(
                tau_columns.new_empty(0, 3, len(keys)), tau_columns, columns, running=False
            )
        for rows in heights_of(queries, keys):
            of_rows, offset = _rows_of(rows_sums, rows), self.offset + rows.start
            parts = self._kernels.sum_tiles(
                queries[rows],
                keys,
                tau_rows[rows],
                tau_columns,
                offset=offset,
                rows=of_rows,
                groups=self._groups(rows),
            )
            assert parts is not None
            self._kernels.merge_tiles(parts, tau_columns, columns, running=rows.start > 0)
        return rows_sums, columns, None

    def gradients(
        self, gradient: PairGradient, queries: Tensor, keys: Tensor, scores: Scores | None
    ) -> tuple[Tensor, Tensor]:
        """See `PairBlock.gradients`."""
        assert scores is None
        unit, gradient = _scaled(gradient, queries.dtype)
        heights = heights_of(queries, keys)
        written = self._written(gradient, queries, keys, heights)
        return multiply_written(written, queries, keys, once=len(heights) == 1, unit=unit)

    def queries_gradient(
        self, gradient: PairGradient, queries: Tensor, keys: Tensor, scores: Scores | None
    ) -> Tensor:
        """See `PairBlock.queries_gradient`."""
        assert scores is None
        unit, gradient = _scaled(gradient, queries.dtype)
        written = self._written(gradient, queries, keys, heights_of(queries, keys))
        return multiply_written_by_keys(written, queries, keys, unit=unit)

    def _written(
        self, gradient: PairGradient, queries: Tensor, keys: Tensor, heights: list[slice]
    ) -> Iterator[tuple[slice, Scores]]:
        """Rows, and the gradient with respect to their scores, [rows m], in the features' precision."""
        height = max((rows.stop - rows.start for rows in heights), default=0)
        buffer = acquire("scores", height, len(keys), queries, queries.dtype)
        of_rows = gradient.rows
        for rows in heights:
            shares = SideShares(of_rows.tau[rows], of_rows.maximum[rows], of_rows.share[rows])
            part = PairGradient(gradient.paired[rows], shares, gradient.columns)
            out, offset = buffer[: rows.stop - rows.start], self.offset + rows.start
            groups = self._groups(rows)
            self._kernels.write_pair_gradient(
                queries[rows], keys, part, offset=offset, out=out, groups=groups
            )
            yield rows, out
        release("scores", buffer)


def heights_of(queries: Tensor, keys: Tensor) -> list[slice]:
    """Rows of each stripe; the memory of its gradient limits them."""
    n = len(queries)
    step = block_rows(n, len(keys) * queries.dtype.itemsize, queries.device, most=STRIPE)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def multiply_written(
    written: Iterable[tuple[slice, Scores]],
    queries: Tensor,
    keys: Tensor,
    *,
    once: bool,
    unit: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys.

    Args:
        written: rows, and the gradient with respect to their scores, in the features' precision.
        queries: [n d].
        keys: [m d].
        once: whether there is one stripe.
        unit: what `written` is to be multiplied by; None: one.
    """
    # A gradient that one product forms is rounded once, by that product.
    queries_grad = empty_contiguous(queries, queries.dtype if unit is None else torch.float32)
    keys_grad = empty_contiguous(keys, keys.dtype if once and unit is None else torch.float32)
    if not len(queries):
        keys_grad.zero_()  # no stripe will overwrite it
    for rows, gradient in written:
        multiply(gradient, keys, queries_grad[rows])
        multiply(gradient.T, queries[rows], keys_grad, add=rows.start > 0)
    if unit is not None:
        queries_grad.mul_(unit)
        keys_grad.mul_(unit)
    return queries_grad.to(queries.dtype), keys_grad.to(keys.dtype)


def multiply_written_by_keys(
    written: Iterable[tuple[slice, Scores]], queries: Tensor, keys: Tensor, *, unit: Tensor | None
) -> Tensor:
    """The gradient of the queries alone; see `multiply_written`."""
    queries_grad = empty_contiguous(queries, queries.dtype if unit is None else torch.float32)
    for rows, gradient in written:
        multiply(gradient, keys, queries_grad[rows])
    if unit is not None:
        queries_grad.mul_(unit)
    return queries_grad.to(queries.dtype)


def power_of_two(parts: Iterable[Tensor], dtype: torch.dtype) -> Tensor | None:
    """For float16, one that is no less than the largest finite number of these; None for other precisions."""
    if dtype != torch.float16:
        return None
    largest = torch.stack([x.nan_to_num(0.0, 0.0, 0.0).abs().amax() for x in parts if len(x)]).amax()
    return torch.exp2(largest.clamp(min=torch.finfo(largest.dtype).tiny).log2().ceil())


def _empty_sums(tau: Tensor, paired_score: Tensor | None = None) -> SideSums:
    """Memory for the sums of rows with these temperatures."""
    empty = torch.empty((6, len(tau)), dtype=tau.dtype, device=tau.device).unbind(0)
    return SideSums(empty[0] if paired_score is None else paired_score.contiguous(), *empty[1:])


def _rows_of(sums: SideSums, rows: slice) -> SideSums:
    """Views of some rows' sums."""
    return SideSums(*(getattr(sums, field.name)[rows] for field in fields(sums)))


def _scaled(gradient: PairGradient, dtype: torch.dtype) -> tuple[Tensor | None, PairGradient]:
    """A power of two and the gradient over it, for float16; None and the gradient itself for others."""
    rows, columns = gradient.rows, gradient.columns
    # A block of one row has a column without other scores, whose share is infinite and meets no score.
    unit = power_of_two((gradient.paired, rows.share, columns.share), dtype)
    if unit is None:
        return None, gradient
    shares = [replace(side, share=side.share / unit) for side in (rows, columns)]
    return unit, PairGradient(gradient.paired / unit, *shares)
