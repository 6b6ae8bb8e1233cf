r"""A moving average of log-numbers per sample: a batch's duplicates, the average and the write, without sorting.

    average_kernel   log g_i = log 1/k sum_{j: same sample} e^(log g_j)       every row reads all n rows
                     log u_i = log((1 - gamma) u + gamma g_i)                 u: the table's entry
    write_kernel     table[number_i] = log u_i                                rows of one sample write the same bits
    gradient_kernel  dL/dlog g_i = dL/dlog u_i * g_i / u_i                    the compositional gradient

Plain PyTorch sorts twice and takes some sixty launches for the same, which is what a small batch waits for. The n^2
comparisons of 8,192 rows are a few microseconds of a GPU. Each row adds its duplicates in one fixed order, so that
they agree to the last bit; another order of the batch changes the last bits of sums of three and more.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import PerRow, RowIndex, RowMask
from dro_temp.kernels.backends.triton.launch import launch

#: Rows that a program averages, and those whose numbers, or log-numbers, it compares them with at a time. Fewer, and
#: it would wait for the memory more often.
ROWS, COMPARED, OTHERS = 16, tl.constexpr(512), 128
#: In place of a sample's number, for rows that do not count.
NO_SAMPLE = tl.constexpr(-1)


@triton.jit  # type: ignore[untyped-decorator]
def duplicates(index, counts, log_g, number, others, n):  # type: ignore[no-untyped-def]
    """Log-numbers of some other rows, and which of those rows are of each row's sample."""
    x = tl.load(log_g + others, mask=others < n, other=0.0)
    theirs = tl.load(index + others, mask=others < n, other=NO_SAMPLE)
    counted = tl.load(counts + others, mask=others < n, other=0) != 0
    # NaN and infinity would stay in the memory for good.
    counted = counted & (theirs >= 0) & (tl.abs(x) < float("inf"))
    return tl.where(counted, x, 0.0), (number[:, None] == theirs[None, :]) & counted[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def have_duplicates(index, number, is_sample, n, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Whether another row may be of a sample of these rows; seldom wrong, and then only time is lost.

    Most batches have no duplicates, so that this comparison, of the numbers' last 32 bits, is what they pay for.
    """
    matches = tl.zeros([ROWS, COMPARED], tl.int32)
    low = number.to(tl.int32)
    for first in range(0, n, COMPARED):
        others = first + tl.arange(0, COMPARED)
        theirs = tl.load(index + others, mask=others < n, other=NO_SAMPLE).to(tl.int32)
        matches += (low[:, None] == theirs[None, :]).to(tl.int32)
    return tl.max(tl.where(is_sample, tl.sum(matches, 1), 0), 0) > 1


@triton.jit  # type: ignore[untyped-decorator]
def average_kernel(  # type: ignore[no-untyped-def]
    index,  # [n], any numbers
    counts,  # [n], which rows count
    log_g,  # [n]
    table,  # [size]
    gammas,  # one number
    numbers,  # [n], written: the sample's number; NO_SAMPLE for a row that is not to be written
    averages,  # [n], written
    extremes,  # [programs 2], written: least and greatest number
    n,
    size,
    log_keep,  # log(1 - gamma), unless SCHEDULED
    log_take,  # log(gamma), unless SCHEDULED
    SCHEDULED: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    OTHERS: tl.constexpr,  # noqa: N803
):
    """Some rows: their samples' averages, were this batch committed; SCHEDULED: gamma is in memory."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # Rows past the end repeat the first, which changes no extreme.
    number = tl.load(index + tl.where(at < n, at, 0))
    tl.store(extremes + 2 * tl.program_id(0), tl.min(number, 0))
    tl.store(extremes + 2 * tl.program_id(0) + 1, tl.max(number, 0))
    own = tl.load(log_g + at, mask=at < n, other=0.0)
    counted = (tl.load(counts + at, mask=at < n, other=0) != 0) & (tl.abs(own) < float("inf"))
    is_sample = counted & (number >= 0) & (number < size)
    number = tl.where(is_sample, number, NO_SAMPLE)
    mean = tl.where(is_sample, own, 0.0)
    if have_duplicates(index, number, is_sample, n, ROWS):
        top = tl.full([ROWS], -float("inf"), tl.float32)
        for first in range(0, n, OTHERS):
            x, same = duplicates(index, counts, log_g, number, first + tl.arange(0, OTHERS), n)
            top = tl.maximum(top, tl.max(tl.where(same, x[None, :], -float("inf")), 1))
        top = tl.where(is_sample, top, 0.0)
        total, times = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
        for first in range(0, n, OTHERS):
            x, same = duplicates(index, counts, log_g, number, first + tl.arange(0, OTHERS), n)
            total += tl.sum(tl.exp(tl.where(same, x[None, :] - top[:, None], -float("inf"))), 1)
            times += tl.sum(same.to(tl.float32), 1)
        mean = top + tl.log(tl.where(is_sample, total, 1.0) / tl.maximum(times, 1.0))
    before = tl.load(table + tl.where(is_sample, number, 0))
    if SCHEDULED:
        weight = tl.load(gammas).to(tl.float64)
        forgets = weight >= 1.0  # the past, whose weight has no logarithm
        log_keep = tl.log(tl.where(forgets, 1.0, 1.0 - weight)).to(tl.float32)
        log_keep = tl.where(forgets, -float("inf"), log_keep)
        log_take = tl.log(weight).to(tl.float32)
    # In logs: the weight of a mean far below the past would be zero, and its log -inf, "never seen".
    old, taken = log_keep + before, log_take + mean
    higher = tl.maximum(old, taken)
    new = higher + tl.log(tl.exp(old - higher) + tl.exp(taken - higher))
    # A first visit is not damped.
    new = tl.where(before == -float("inf"), mean, new)
    tl.store(numbers + at, number, mask=at < n)
    # A row that does not count keeps its own number, NaN included.
    tl.store(averages + at, tl.where(is_sample, new, own), mask=at < n)


@triton.jit  # type: ignore[untyped-decorator]
def write_kernel(numbers, averages, table, n, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Some rows' entries of the table."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.load(numbers + at, mask=at < n, other=NO_SAMPLE)
    tl.store(table + number, tl.load(averages + at, mask=at < n, other=0.0), mask=number >= 0)


@triton.jit  # type: ignore[untyped-decorator]
def gradient_kernel(  # type: ignore[no-untyped-def]
    log_g,  # [n]
    log_u,  # [n]
    upstream,  # [n]
    gradients,  # [n], written
    n,
    largest,
    ROWS: tl.constexpr,  # noqa: N803
):
    """Some rows' gradients; none where either number is infinite."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    g, u = tl.load(log_g + at, mask=at < n, other=0.0), tl.load(log_u + at, mask=at < n, other=0.0)
    infinite = (tl.abs(g) == float("inf")) | (tl.abs(u) == float("inf"))
    exponent = tl.where(infinite, 0.0, g - u)
    # NaN stays, for a gradient scaler to find.
    ratio = tl.exp(tl.where(exponent > largest, largest, exponent))
    gradient = tl.load(upstream + at, mask=at < n, other=0.0) * tl.where(infinite, 0.0, ratio)
    tl.store(gradients + at, gradient, mask=at < n)


def averages(
    index: RowIndex, counts: RowMask, log_g: PerRow, table: Tensor, gamma: float | Tensor
) -> tuple[RowIndex, PerRow, Tensor]:
    """What a commit of this batch would write.

    Args:
        index: [n] sample numbers, int64; what is no number of the table does not count.
        counts: [n] rows that count.
        log_g: [n] the batch's log-numbers, float32.
        table: [size] the averages so far, float32; -inf where there is none.
        gamma: weight of the batch, or a scalar tensor of it.

    Returns:
        [n] numbers of the samples, -1 for rows that do not count; [n] averages, `log_g` itself for those; and least
        and greatest number of some rows each, [p 2].
    """
    n, programs = len(index), triton.cdiv(len(index), ROWS)
    numbers, average = torch.empty_like(index), torch.empty_like(log_g)
    extremes = index.new_empty((programs, 2))
    scheduled, logs = isinstance(gamma, Tensor), (0.0, 0.0)
    if not isinstance(gamma, Tensor):
        logs = (math.log1p(-gamma) if gamma < 1.0 else -math.inf, math.log(gamma))
    launch(
        average_kernel,
        programs,
        index.contiguous(),
        counts.contiguous(),
        log_g.contiguous(),
        table,
        gamma if scheduled else log_g,
        numbers,
        average,
        extremes,
        n,
        len(table),
        *logs,
        SCHEDULED=scheduled,
        ROWS=ROWS,
        OTHERS=OTHERS,
        num_warps=4,
    )
    return numbers, average, extremes


def write(table: Tensor, numbers: RowIndex, average: PerRow) -> None:
    """Write averages into the table; a negative number is left out, and rows of one number must agree."""
    launch(
        write_kernel,
        triton.cdiv(len(numbers), OTHERS),
        numbers,
        average,
        table,
        len(numbers),
        ROWS=OTHERS,
        num_warps=1,
    )


def compositional_gradient(log_g: PerRow, log_u: PerRow, upstream: PerRow, *, largest: float) -> PerRow:
    """Gradient with respect to log g, `upstream * exp(min(log_g - log_u, largest))`; 0 where either is infinite."""
    gradient = torch.empty_like(log_g)
    n = len(log_g)
    args = (log_g.contiguous(), log_u.contiguous(), upstream.contiguous(), gradient)
    launch(gradient_kernel, triton.cdiv(n, OTHERS), *args, n, largest, ROWS=OTHERS, num_warps=1)
    return gradient
