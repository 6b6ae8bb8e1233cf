r"""A number or two per row of a batch, in one launch each: what a step of few rows on a GPU waits for.

labels_kernel    labels, mask        -> target, weight; the first wrong label of some rows
finite_kernel    features, tau, loss -> which of them hold NaN or infinity in a row that counts
spread_kernel    tau                 -> mean, standard deviation, least and greatest of the rows that count
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import Features, PerRow, RowIndex, RowMask
from dro_temp.kernels.backends.triton.launch import launch
from dro_temp.kernels.backends.triton.pair_tiles import by_rows

#: Rows of a program; numbers of a row that it reads at a time.
LABEL_ROWS, FINITE_ROWS, FINITE_COLUMNS = 1024, 32, 64
#: Numbers that the only program of a spread reads at a time.
SPREAD_TILE = 2048
#: Place of a wrong label where there is none.
NONE = tl.constexpr(2**62)


@triton.jit  # type: ignore[untyped-decorator]
def labels_kernel(  # type: ignore[no-untyped-def]
    labels,  # [n]
    mask,  # [n], unless not MASKED
    targets,  # [n], written
    weights,  # [n], written
    wrongs,  # [programs 2], written: row and value of the first wrong label
    n,
    classes,
    IGNORE: tl.constexpr,  # noqa: N803
    MASKED: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    """Some rows; an ignored, masked or wrong label becomes column 0 with weight 0."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = at < n
    label = tl.load(labels + at, mask=inside, other=IGNORE).to(tl.int64)
    counted = label != IGNORE
    if MASKED:
        counted = counted & (tl.load(mask + at, mask=inside, other=0) != 0)
    is_column = (label >= 0) & (label < classes)
    row = tl.min(tl.where(counted & ~is_column, at, NONE), 0)
    tl.store(wrongs + 2 * tl.program_id(0), row)
    tl.store(wrongs + 2 * tl.program_id(0) + 1, tl.sum(tl.where(at == row, label, 0), 0))
    counted = counted & is_column
    tl.store(targets + at, tl.where(counted, label, 0).to(targets.dtype.element_ty), mask=inside)
    tl.store(weights + at, counted.to(tl.float32), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def is_finite(x):  # type: ignore[no-untyped-def]
    """In its own precision: float64 reaches further than float32."""
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    return tl.abs(x) < float("inf")


@triton.jit  # type: ignore[untyped-decorator]
def finite_kernel(  # type: ignore[no-untyped-def]
    features,  # [n d], rows `stride` apart, unless not FEATURES
    tau,  # [n]
    values,  # [n]
    counts,  # [n], unless not SOME
    found,  # [n], written: 1 for features, 2 for temperatures, 4 for values
    any_found,  # [programs], written
    n,
    d,
    stride,
    FEATURES: tl.constexpr,  # noqa: N803
    SOME: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Some rows; SOME: not all of them count."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    counted = at < n
    if SOME:
        counted = tl.load(counts + at, mask=counted, other=0) != 0
    bad = tl.where(is_finite(tl.load(tau + at, mask=counted, other=0.0)), 0, 2)
    # The value of a row that does not count is zero; NaN there is a fault of the loss.
    bad += tl.where(is_finite(tl.load(values + at, mask=at < n, other=0.0)), 0, 4)
    if FEATURES:
        wrong = tl.zeros([ROWS, COLUMNS], tl.int32)
        for first in range(0, d, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            mask = counted[:, None] & (column < d)[None, :]
            x = tl.load(features + at[:, None] * stride + column[None, :], mask=mask, other=0.0)
            wrong = wrong | tl.where(is_finite(x), 0, 1)
        bad += tl.max(wrong, 1)
    tl.store(found + at, bad.to(tl.int8), mask=at < n)
    tl.store(any_found + tl.program_id(0), tl.max(bad, 0))


@triton.jit  # type: ignore[untyped-decorator]
def spread_kernel(x, counts, spread, n, SOME: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Mean, standard deviation, least and greatest of some numbers; zeros if none counts."""
    total, number = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    low, high = tl.full([TILE], float("inf"), tl.float32), tl.full([TILE], -float("inf"), tl.float32)
    for first in range(0, n, TILE):
        at = first + tl.arange(0, TILE)
        counted = at < n
        if SOME:
            counted = tl.load(counts + at, mask=counted, other=0) != 0
        y = tl.load(x + at, mask=counted, other=0.0).to(tl.float32)
        total += y
        number += counted.to(tl.float32)
        low, high = tl.minimum(low, tl.where(counted, y, low)), tl.maximum(high, tl.where(counted, y, high))
    size = tl.sum(number, 0)
    none = size == 0.0
    size = tl.maximum(size, 1.0)
    mean = tl.sum(total, 0) / size
    squares = tl.zeros([TILE], tl.float32)
    for first in range(0, n, TILE):
        at = first + tl.arange(0, TILE)
        counted = at < n
        if SOME:
            counted = tl.load(counts + at, mask=counted, other=0) != 0
        step = tl.load(x + at, mask=counted, other=0.0).to(tl.float32) - mean
        squares += tl.where(counted, step * step, 0.0)
    tl.store(spread, mean)
    tl.store(spread + 1, tl.sqrt(tl.sum(squares, 0) / size))
    # NaN, which the extremes of a GPU leave out, is in the mean.
    none_or_nan = none | (mean != mean)
    tl.store(spread + 2, tl.where(none_or_nan, mean, tl.min(low, 0)))
    tl.store(spread + 3, tl.where(none_or_nan, mean, tl.max(high, 0)))


def labels(
    given: Tensor, mask: RowMask | None, classes: int, *, ignore: int
) -> tuple[RowIndex, PerRow, Tensor]:
    """Labels as columns with weights.

    Args:
        given: [n] labels, n > 0.
        mask: [n] rows that may count; None: all.
        classes: number of columns.
        ignore: the label of rows that do not count.

    Returns:
        [n] columns, 0 where a row does not count; [n] weights, 1 or 0; and of some rows each the place and the value
        of the first label that is no column, [p 2]; the place is no row where there is none.
    """
    n = len(given)
    programs = triton.cdiv(n, LABEL_ROWS)
    target, wrongs = torch.empty_like(given), given.new_empty((programs, 2), dtype=torch.int64)
    weight = torch.empty(n, dtype=torch.float32, device=given.device)
    launch(
        labels_kernel,
        programs,
        given.contiguous(),
        given if mask is None else mask.contiguous(),
        target,
        weight,
        wrongs,
        n,
        classes,
        IGNORE=ignore,
        MASKED=mask is not None,
        ROWS=LABEL_ROWS,
        num_warps=4,
    )
    return target, weight, wrongs


def not_finite(
    features: Features | None, tau: PerRow, values: PerRow, counts: RowMask | None, any_found: Tensor
) -> Tensor:
    """Bits per row, int8: 1 where its features, 2 where its temperature, 4 where its value is NaN or infinite.

    Args:
        features: [n d], or None.
        tau: [n].
        values: [n]; of a row that does not count as well, which must be finite.
        counts: [n] rows that count; None: all.
        any_found: [`parts_of(n)`], int32; 0 where no row of a part has any.
    """
    n = len(tau)
    found = torch.empty(n, dtype=torch.int8, device=tau.device)
    features = None if features is None else by_rows(features)
    launch(
        finite_kernel,
        len(any_found),
        tau if features is None else features,
        tau.contiguous(),
        values.contiguous(),
        tau if counts is None else counts.contiguous(),
        found,
        any_found,
        n,
        0 if features is None else features.shape[1],
        0 if features is None else features.stride(0),
        FEATURES=features is not None,
        SOME=counts is not None,
        ROWS=FINITE_ROWS,
        COLUMNS=FINITE_COLUMNS,
        num_warps=4,
    )
    return found


def parts_of(n: int) -> int:
    """Programs that look at n rows."""
    return -(-n // FINITE_ROWS)


def spread(x: PerRow, counts: RowMask | None) -> Tensor:
    """Mean, standard deviation, least and greatest of the numbers that count (None: all), [4] float32; 0 of none."""
    found = torch.empty(4, dtype=torch.float32, device=x.device)
    launch(
        spread_kernel,
        1,
        x.contiguous(),
        x if counts is None else counts.contiguous(),
        found,
        len(x),
        SOME=counts is not None,
        TILE=SPREAD_TILE,
        num_warps=8,
    )
    return found
