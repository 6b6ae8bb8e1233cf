"""Column sums of a stripe: partial sums of chunks of rows, then their union.

Columns are summed in a fixed order, without atomic additions: the same input gives the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import Scores
from dro_temp.kernels.backends.protocol import ColumnSums
from dro_temp.kernels.backends.triton.launch import launch, row_stride, stripe_tile, vector
from dro_temp.kernels.backends.triton.online import LOG2E, LOWEST, absorb, meet, start

# Rows that one program sums: partial sums take 3/256 of a stripe's memory.
CHUNK = 256
UNITED_CHUNKS, UNITED_COLUMNS = 16, 32


@triton.jit  # type: ignore[untyped-decorator]
def chunk_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `stride` apart
    tau,  # [m]
    tops,  # [chunks m]
    totals,  # [chunks m]
    moments,  # [chunks m], relative to tops
    n,
    m,
    stride,
    CHUNK: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Sums of each column over one chunk of rows."""
    across = tl.cdiv(m, COLUMNS)
    chunk = tl.program_id(0) // across
    columns = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < m
    rate = LOG2E / tl.load(tau + columns, mask=inside, other=1.0)
    top, total, moment = start([ROWS, COLUMNS], scores.dtype.element_ty)
    end = tl.minimum(chunk * CHUNK + CHUNK, n)
    for first in range(chunk * CHUNK, end, ROWS):
        rows = (first + tl.arange(0, ROWS)).to(tl.int64)
        mask = (rows < end)[:, None] & inside[None, :]
        s = tl.load(scores + rows[:, None] * stride + columns[None, :], mask=mask, other=-float("inf"))
        top, total, moment = absorb(top, total, moment, s, rate[None, :])
    highest, sums, excess = meet(top, total, moment, rate[None, :], 0)
    at = chunk.to(tl.int64) * m + columns
    tl.store(tops + at, highest, mask=inside)
    tl.store(totals + at, sums, mask=inside)
    tl.store(moments + at, excess, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def unite_kernel(  # type: ignore[no-untyped-def]
    tau,  # [m]
    tops,  # [chunks m]
    totals,  # [chunks m]
    moments,  # [chunks m], relative to tops
    top_sums,  # [m], updated
    total_sums,  # [m], updated
    moment_sums,  # [m], updated; not relative
    chunks,
    m,
    CHUNKS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """All chunks' sums into the running ones."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < m
    rate = LOG2E / tl.load(tau + columns, mask=inside, other=1.0)
    top = tl.load(top_sums + columns, mask=inside, other=0.0)
    total = tl.load(total_sums + columns, mask=inside, other=0.0)
    moment = tl.load(moment_sums + columns, mask=inside, other=0.0)
    for first in range(0, chunks, CHUNKS):
        chunk = (first + tl.arange(0, CHUNKS)).to(tl.int64)
        mask = (chunk < chunks)[:, None] & inside[None, :]
        at = chunk[:, None] * m + columns[None, :]
        part = tl.load(tops + at, mask=mask, other=LOWEST)
        part_total = tl.load(totals + at, mask=mask, other=0.0)
        part_moment = tl.load(moments + at, mask=mask, other=0.0)
        highest, sums, excess = meet(part, part_total, part_moment, rate[None, :], 0)
        risen = tl.maximum(top, highest)
        decay, share = tl.exp2((top - risen) * rate), tl.exp2((highest - risen) * rate)
        total = total * decay + sums * share
        moment = moment * decay + (excess + highest * sums) * share
        top = risen
    tl.store(top_sums + columns, top, mask=inside)
    tl.store(total_sums + columns, total, mask=inside)
    tl.store(moment_sums + columns, moment, mask=inside)


def column_sums_(scores: Scores, tau: Tensor, sums: ColumnSums) -> None:
    """See `Backend.column_sums_`."""
    n, m = scores.shape
    tau, stride = vector(tau, scores), row_stride(scores)
    chunks, tile = triton.cdiv(n, CHUNK), stripe_tile(m)
    across = triton.cdiv(m, tile["COLUMNS"])
    parts = [scores.new_empty((chunks, m)) for _ in range(3)]
    launch(chunk_kernel, chunks * across, scores, tau, *parts, n, m, stride, CHUNK=CHUNK, **tile)
    programs, whole = triton.cdiv(m, UNITED_COLUMNS), (sums.column_max, sums.sum_exp, sums.moment)
    meta = {"CHUNKS": UNITED_CHUNKS, "COLUMNS": UNITED_COLUMNS, "num_warps": 1}
    launch(unite_kernel, programs, tau, *parts, *whole, chunks, m, **meta)
