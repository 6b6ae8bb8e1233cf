r"""Moving averages of a table's entries: one kernel from a minibatch's numbers to the estimates, one that writes them.

    average_kernel  for each row: log-mean-exp over the rows of the same sample, then the average with the entry  [n]
    write_kernel    the estimates into the table                                                                  [N]

The same in PyTorch sorts twice and takes 70 launches a view, which the host needs longer for than the device for the
whole loss of a small batch. Here every row looks at every other: n^2 comparisons, of numbers that stay in the cache.

Rows of one sample add the same numbers in the same order and get the same bits; the same input gives the same output.
Another order of the rows changes the sum over three or more of one sample by its rounding, 1e-7 in $\log u$; PyTorch's
version sorts by value and does not change at all.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import PerRow, RowIndex, RowMask
from dro_temp.kernels.backends.triton.launch import launch

# Rows of a program, and how many others it looks at a time.
ROWS, OTHERS = 16, 128
WRITTEN = 1024
#: Beyond as many rows, sorting is faster than to compare all with all.
MOST_ROWS = 2**14


@triton.jit  # type: ignore[untyped-decorator]
def _log_g_of(index, valid, log_g, rows, n, size, HAS_VALID: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Sample number and log g of some rows; the number is -1 for rows that change nothing."""
    inside = rows < n
    number = tl.load(index + rows, mask=inside, other=-1)
    x = tl.load(log_g + rows, mask=inside, other=0.0)
    # NaN and infinity would stay in the memory for good.
    counts = inside & (number >= 0) & (number < size) & (tl.abs(x) < float("inf"))
    if HAS_VALID:
        counts = counts & (tl.load(valid + rows, mask=inside, other=0) != 0)
    return tl.where(counts, number, -1), x


@triton.jit  # type: ignore[untyped-decorator]
def average_kernel(  # type: ignore[no-untyped-def]
    index,  # [n], int64
    valid,  # [n], bool
    log_g,  # [n]
    table,  # [size]
    gamma,  # one number, if SCHEDULED
    kept,  # [n], int64: written, -1 for rows that change nothing
    updated,  # [n]: written
    log_keep,  # log(1 - gamma), unless SCHEDULED
    log_take,  # log(gamma), unless SCHEDULED
    n,
    size,
    HAS_VALID: tl.constexpr,  # noqa: N803
    SCHEDULED: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    OTHERS: tl.constexpr,  # noqa: N803
):
    """The estimates of some rows, as they would be after this minibatch."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number, own = _log_g_of(index, valid, log_g, rows, n, size, HAS_VALID)
    alone = number < 0
    largest = tl.where(alone, 0.0, own)
    for start in range(0, n, OTHERS):
        theirs, x = _log_g_of(index, valid, log_g, start + tl.arange(0, OTHERS), n, size, HAS_VALID)
        same = (number[:, None] == theirs[None, :]) & (theirs >= 0)[None, :]
        largest = tl.maximum(largest, tl.max(tl.where(same, x[None, :], -float("inf")), 1))
    total = tl.where(alone, 1.0, 0.0)
    count = tl.where(alone, 1.0, 0.0)
    for start in range(0, n, OTHERS):
        theirs, x = _log_g_of(index, valid, log_g, start + tl.arange(0, OTHERS), n, size, HAS_VALID)
        same = (number[:, None] == theirs[None, :]) & (theirs >= 0)[None, :]
        below = tl.where(same, x[None, :], -float("inf")) - largest[:, None]
        total += tl.sum(tl.exp(below), 1)
        count += tl.sum(same.to(tl.float32), 1)
    mean = tl.log(total / count) + largest
    if SCHEDULED:
        share = tl.load(gamma).to(tl.float64)
        forgets = share >= 1.0  # the past, whose weight has no logarithm
        log_keep = tl.where(forgets, -float("inf"), tl.log(tl.where(forgets, 1.0, 1.0 - share))).to(
            tl.float32
        )
        log_take = tl.log(share).to(tl.float32)
    log_u = tl.load(table + tl.where(alone, 0, number), mask=rows < n, other=0.0)
    old, new = log_keep + log_u, log_take + mean
    top = tl.maximum(old, new)
    average = top + tl.log(tl.exp(old - top) + tl.exp(new - top))
    # A first visit is not damped by gamma; a row that changes nothing is its own estimate.
    average = tl.where(log_u == -float("inf"), mean, average)
    tl.store(updated + rows, tl.where(alone, own, average), mask=rows < n)
    tl.store(kept + rows, number, mask=rows < n)


@triton.jit  # type: ignore[untyped-decorator]
def write_kernel(table, index, values, n, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Entries of a table, but for numbers outside it."""
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    number = tl.load(index + rows, mask=rows < n, other=-1)
    value = tl.load(values + rows, mask=rows < n, other=0.0)
    tl.store(table + number, value, mask=(number >= 0) & (number < size))


def moving_average(
    table: Tensor,
    index: RowIndex,
    log_g: PerRow,
    valid: RowMask | None,
    gamma: Tensor | tuple[float, float],
) -> tuple[RowIndex, PerRow]:
    """Sample numbers, -1 for rows that change nothing, and estimates.

    Args:
        table: log of the averages so far, [N], -inf where there is none.
        index: sample numbers; those outside the table change nothing.
        log_g: log of each row's new value, float32.
        valid: True for rows that count; None: all.
        gamma: weight of the new value, a tensor on the device, or the logs of 1 - gamma and of gamma.
    """
    index, log_g = index.contiguous(), log_g.contiguous()
    kept, updated = index.new_empty(index.shape), log_g.new_empty(log_g.shape)
    scheduled = isinstance(gamma, Tensor)
    log_keep, log_take = (0.0, 0.0) if isinstance(gamma, Tensor) else gamma
    launch(
        average_kernel,
        triton.cdiv(len(index), ROWS),
        *(index, index if valid is None else valid.contiguous(), log_g, table),
        *(gamma if scheduled else log_g, kept, updated, log_keep, log_take, len(index), len(table)),
        HAS_VALID=valid is not None,
        SCHEDULED=scheduled,
        ROWS=ROWS,
        OTHERS=OTHERS,
        num_warps=4,
    )
    return kept, updated


def write(table: Tensor, index: RowIndex, values: PerRow) -> None:
    """Overwrite entries of a table; rows of the same number must agree, and those outside it are left out."""
    n = len(index)
    args = (table, index.contiguous(), values.to(table.dtype).contiguous(), n, len(table))
    launch(write_kernel, triton.cdiv(n, WRITTEN), *args, TILE=WRITTEN, num_warps=4)
    # Autograd and the check that a table has not changed since it was read know of no kernel.
    torch.autograd.graph.increment_version(table)
