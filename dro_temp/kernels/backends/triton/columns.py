"""Column sums of a stripe, [n m]: one kernel for partial sums of chunks of rows, one that merges them.

    chunk_kernel  reads each score once; writes maximum, sum and moment of each column    [chunks m]
    merge_kernel  reads those and the running sums; writes the running sums               [m]

Two kernels instead of atomic additions, so that columns are summed in a fixed order: the same input gives the same
bits. Partial sums take 3/256 of a stripe's memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import Scores
from dro_temp.kernels.backends.protocol import ColumnSums
from dro_temp.kernels.backends.triton.launch import launch, row_stride, stripe_tile, vector
from dro_temp.kernels.backends.triton.online import LOG2E, LOWEST, add_score, empty_sums, reduce_lanes

# Rows that one program sums.
CHUNK = 256
# Tile of partial sums that one program merges at a time.
MERGED_CHUNKS, MERGED_COLUMNS = 16, 32


@triton.jit  # type: ignore[untyped-decorator]
def chunk_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `stride` apart
    tau,  # [m]
    part_max,  # [chunks m]
    part_sum,  # [chunks m]
    part_moment,  # [chunks m], relative to part_max
    n,
    m,
    stride,
    CHUNK: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Sums of each column over one chunk of rows."""
    column_tiles = tl.cdiv(m, COLUMNS)
    chunk = tl.program_id(0) // column_tiles
    columns = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < m
    rate = LOG2E / tl.load(tau + columns, mask=inside, other=1.0)
    running_max, sum_exp, moment = empty_sums([ROWS, COLUMNS], scores.dtype.element_ty)
    end = tl.minimum(chunk * CHUNK + CHUNK, n)
    for start in range(chunk * CHUNK, end, ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (rows < end)[:, None] & inside[None, :]
        s = tl.load(scores + rows[:, None] * stride + columns[None, :], mask=mask, other=-float("inf"))
        running_max, sum_exp, moment = add_score(running_max, sum_exp, moment, s, rate[None, :])
    highest, sums, excess = reduce_lanes(running_max, sum_exp, moment, rate[None, :], 0)
    offset = chunk.to(tl.int64) * m + columns
    tl.store(part_max + offset, highest, mask=inside)
    tl.store(part_sum + offset, sums, mask=inside)
    tl.store(part_moment + offset, excess, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def]
    tau,  # [m]
    part_max,  # [chunks m]
    part_sum,  # [chunks m]
    part_moment,  # [chunks m], relative to part_max
    column_max,  # [m], updated
    column_sum,  # [m], updated
    column_moment,  # [m], updated; not relative
    chunks,
    m,
    CHUNKS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Merge the sums of all chunks into the running ones."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < m
    rate = LOG2E / tl.load(tau + columns, mask=inside, other=1.0)
    running_max = tl.load(column_max + columns, mask=inside, other=0.0)
    sum_exp = tl.load(column_sum + columns, mask=inside, other=0.0)
    moment = tl.load(column_moment + columns, mask=inside, other=0.0)
    for start in range(0, chunks, CHUNKS):
        chunk = (start + tl.arange(0, CHUNKS)).to(tl.int64)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        offset = chunk[:, None] * m + columns[None, :]
        chunk_max = tl.load(part_max + offset, mask=mask, other=LOWEST)
        chunk_sum = tl.load(part_sum + offset, mask=mask, other=0.0)
        chunk_moment = tl.load(part_moment + offset, mask=mask, other=0.0)
        highest, sums, excess = reduce_lanes(chunk_max, chunk_sum, chunk_moment, rate[None, :], 0)
        new_max = tl.maximum(running_max, highest)
        decay, share = tl.exp2((running_max - new_max) * rate), tl.exp2((highest - new_max) * rate)
        sum_exp = sum_exp * decay + sums * share
        moment = moment * decay + (excess + highest * sums) * share
        running_max = new_max
    tl.store(column_max + columns, running_max, mask=inside)
    tl.store(column_sum + columns, sum_exp, mask=inside)
    tl.store(column_moment + columns, moment, mask=inside)


def column_sums_(scores: Scores, tau: Tensor, sums: ColumnSums) -> None:
    """See `Backend.column_sums_`."""
    n, m = scores.shape
    tau, stride = vector(tau, scores), row_stride(scores)
    chunks, tile = triton.cdiv(n, CHUNK), stripe_tile(m)
    column_tiles = triton.cdiv(m, tile["COLUMNS"])
    chunk_sums = [scores.new_empty((chunks, m)) for _ in range(3)]
    launch(chunk_kernel, chunks * column_tiles, scores, tau, *chunk_sums, n, m, stride, CHUNK=CHUNK, **tile)
    programs, running = triton.cdiv(m, MERGED_COLUMNS), (sums.column_max, sums.sum_exp, sums.moment)
    meta = {"CHUNKS": MERGED_CHUNKS, "COLUMNS": MERGED_COLUMNS, "num_warps": 1}
    launch(merge_kernel, programs, tau, *chunk_sums, *running, chunks, m, **meta)
