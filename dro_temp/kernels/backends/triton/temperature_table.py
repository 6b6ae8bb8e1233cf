r"""A step of a table with one temperature per sample: the gradients of a batch's duplicates averaged, without sorting.

    step_kernel  m_i = (1 - beta) m_i + beta clip(mean_j G_j)     j: the rows of row i's sample
                 tau_i = clip(tau_i - lr m_i)

Rows of one sample compute the same bits; both tables are written afterwards, see `log_table.write`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import PerRow, RowIndex
from dro_temp.kernels.backends.triton.launch import launch
from dro_temp.kernels.backends.triton.log_table import NO_SAMPLE, OTHERS, ROWS, have_duplicates, write


@triton.jit  # type: ignore[untyped-decorator]
def clipped(x, low, high):  # type: ignore[no-untyped-def]
    """NaN stays."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit  # type: ignore[untyped-decorator]
def step_kernel(  # type: ignore[no-untyped-def]
    index,  # [n], any numbers; one outside the tables does not count
    gradients,  # [n]
    tau,  # [size]
    momentum,  # [size]
    numbers,  # [n], written: the sample's number; NO_SAMPLE for a row that is not to be written
    new_tau,  # [n], written
    new_momentum,  # [n], written
    n,
    size,
    lr,
    beta,
    clip,
    low,
    high,
    ROWS: tl.constexpr,  # noqa: N803
    OTHERS: tl.constexpr,  # noqa: N803
):
    """Some rows."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.load(index + at, mask=at < n, other=NO_SAMPLE)
    is_sample = (number >= 0) & (number < size)
    number = tl.where(is_sample, number, NO_SAMPLE)
    mean = tl.load(gradients + at, mask=at < n, other=0.0)
    if have_duplicates(index, number, is_sample, n, ROWS):
        total, times = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
        for first in range(0, n, OTHERS):
            others = first + tl.arange(0, OTHERS)
            theirs = tl.load(index + others, mask=others < n, other=NO_SAMPLE)
            x = tl.load(gradients + others, mask=others < n, other=0.0)
            same = number[:, None] == theirs[None, :]
            total += tl.sum(tl.where(same, x[None, :], 0.0), 1)
            times += tl.sum(same.to(tl.float32), 1)
        mean = total / tl.maximum(times, 1.0)
    place = tl.where(is_sample, number, 0)
    m = (1.0 - beta) * tl.load(momentum + place) + beta * clipped(mean, -clip, clip)
    tl.store(numbers + at, number, mask=at < n)
    tl.store(new_momentum + at, m, mask=at < n)
    tl.store(new_tau + at, clipped(tl.load(tau + place) - lr * m, low, high), mask=at < n)


def step(
    index: RowIndex,
    gradients: PerRow,
    tau: Tensor,
    momentum: Tensor,
    *,
    lr: float,
    beta: float,
    clip: float,
    bounds: tuple[float, float],
) -> None:
    """Step the entries of a batch's samples.

    Args:
        index: [n] sample numbers, int64; what is no number of the tables does not count.
        gradients: [n] of each row's own temperature, float32.
        tau: [size] temperatures, float32, written.
        momentum: [size] averages of the gradients, float32, written.
        lr: step.
        beta: weight of the new gradient.
        clip: largest magnitude of a gradient.
        bounds: least and greatest temperature.
    """
    n = len(index)
    numbers, new = torch.empty_like(index), gradients.new_empty(2, n)
    launch(
        step_kernel,
        triton.cdiv(n, ROWS),
        index.contiguous(),
        gradients.contiguous(),
        tau,
        momentum,
        numbers,
        *new.unbind(0),
        n,
        len(tau),
        lr,
        beta,
        clip,
        *bounds,
        ROWS=ROWS,
        OTHERS=OTHERS,
        num_warps=4,
    )
    write(tau, numbers, new[0])
    write(momentum, numbers, new[1])
