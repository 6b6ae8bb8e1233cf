"""Maximum of each row; mean, deviation, norm and number of the outcomes that can happen, in a second read.

One program per row, [m]. The maximum decides which outcomes can happen, hence the second read, which should find the
row in the cache (`evict_last`). Each lane keeps its own mean and squares (Welford), merged once at the end: a sum of
squares would lose its digits where scores lie far from zero.
"""

from collections.abc import Collection

import triton
import triton.language as tl

from dro_temp._typing import PerRow, RowIndex, Scores
from dro_temp.functional.statistics import IMPOSSIBLE_BELOW, NOT_AN_OUTCOME
from dro_temp.kernels.backends.triton.launch import launch, row_stride, row_tile

MASKED = tl.constexpr(NOT_AN_OUTCOME)
BELOW_MAX = tl.constexpr(IMPOSSIBLE_BELOW)
MOMENTS = ("max", "mean", "std", "norm", "count")


@triton.jit  # type: ignore[untyped-decorator]
def moments_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `stride` apart
    target,  # [n]
    row_maxima,  # [n]
    means,  # [n]
    deviations,  # [n]
    norms,  # [n]
    counts,  # [n]
    m,
    stride,
    WITH_TARGET: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * stride
    target_column = tl.load(target + row)
    dtype = scores.dtype.element_ty
    lanes = tl.arange(0, TILE)
    top = tl.full([TILE], -float("inf"), dtype)
    for first in range(0, m, TILE):
        columns = first + lanes
        # The second read should find the row in the cache.
        s = tl.load(scores + columns, mask=columns < m, other=-float("inf"), eviction_policy="evict_last")
        if not WITH_TARGET:
            s = tl.where(columns == target_column, MASKED, s)
        top = tl.maximum(top, s)
    highest = tl.max(top, 0)
    floor = highest - BELOW_MAX
    # Per lane: number of outcomes that can happen, mean, sum of squares about the mean, sum of squares.
    count, mean = tl.full([TILE], 0.0, dtype), tl.full([TILE], 0.0, dtype)
    square_about_mean, square = tl.full([TILE], 0.0, dtype), tl.full([TILE], 0.0, dtype)
    for first in range(0, m, TILE):
        columns = first + lanes
        in_row = columns < m
        s = tl.load(scores + columns, mask=in_row, other=-float("inf"))
        inside = in_row
        if not WITH_TARGET:
            inside = in_row & (columns != target_column)
        # s >= floor would exclude NaN.
        inside = inside & ((s < floor) == 0)
        s = tl.where(inside, s, mean)
        count += tl.where(inside, 1.0, 0.0)
        step = s - mean
        mean += step / tl.maximum(count, 1.0)
        square_about_mean += step * (s - mean)
        square += tl.where(inside, s * s, 0.0)
    size = tl.sum(count, 0)
    middle = tl.sum(mean * count, 0) / size
    shift = mean - middle
    square_about_middle = tl.sum(square_about_mean + count * shift * shift, 0)
    tl.store(row_maxima + row, highest)
    tl.store(counts + row, size)
    tl.store(means + row, middle)
    tl.store(deviations + row, tl.sqrt(square_about_middle / size))
    tl.store(norms + row, tl.sqrt(tl.sum(square, 0)))


def moments(
    scores: Scores, target: RowIndex, target_in_support: bool, requested: Collection[str]
) -> dict[str, PerRow]:
    """See `Backend.moments`."""
    requested = [name for name in MOMENTS if name in requested]
    if not requested:
        return {}
    n, m = scores.shape
    results = {name: scores.new_empty(n) for name in MOMENTS}
    options = {"WITH_TARGET": target_in_support, **row_tile(m)}
    launch(
        moments_kernel, n, scores, target.contiguous(), *results.values(), m, row_stride(scores), **options
    )
    return {name: results[name] for name in requested}
