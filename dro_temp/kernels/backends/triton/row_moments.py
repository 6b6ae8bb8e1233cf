"""Largest score of each row; mean, deviation, norm and number of the outcomes that can happen, in a second read."""

from collections.abc import Collection

import triton
import triton.language as tl

from dro_temp._typing import PerRow, RowIndex, Scores
from dro_temp.functional.statistics import IMPOSSIBLE_BELOW, NOT_AN_OUTCOME
from dro_temp.kernels.backends.triton.launch import launch, row_stride, row_tile

MASKED = tl.constexpr(NOT_AN_OUTCOME)
GAP = tl.constexpr(IMPOSSIBLE_BELOW)
MOMENTS = ("max", "mean", "std", "norm", "count")


@triton.jit  # type: ignore[untyped-decorator]
def moments_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `stride` apart
    target,  # [n]
    tops,  # [n]
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
    own = tl.load(target + row)
    dtype = scores.dtype.element_ty
    lanes = tl.arange(0, TILE)
    top = tl.full([TILE], -float("inf"), dtype)
    for first in range(0, m, TILE):
        at = first + lanes
        # The second read should find the row in the cache.
        s = tl.load(scores + at, mask=at < m, other=-float("inf"), eviction_policy="evict_last")
        if not WITH_TARGET:
            s = tl.where(at == own, MASKED, s)
        top = tl.maximum(top, s)
    highest = tl.max(top, 0)
    floor = highest - GAP
    # Each lane keeps its own mean and sum of squares about it (Welford): scores may lie far from zero.
    count, mean = tl.full([TILE], 0.0, dtype), tl.full([TILE], 0.0, dtype)
    about, square = tl.full([TILE], 0.0, dtype), tl.full([TILE], 0.0, dtype)
    for first in range(0, m, TILE):
        at = first + lanes
        within = at < m
        s = tl.load(scores + at, mask=within, other=-float("inf"))
        inside = within
        if not WITH_TARGET:
            inside = within & (at != own)
        # Not s >= floor, which would leave NaN out.
        inside = inside & ((s < floor) == 0)
        s = tl.where(inside, s, mean)
        count += tl.where(inside, 1.0, 0.0)
        step = s - mean
        mean += step / tl.maximum(count, 1.0)
        about += step * (s - mean)
        square += tl.where(inside, s * s, 0.0)
    size = tl.sum(count, 0)
    middle = tl.sum(mean * count, 0) / size
    apart = mean - middle
    about_middle = tl.sum(about + count * apart * apart, 0)
    tl.store(tops + row, highest)
    tl.store(counts + row, size)
    tl.store(means + row, middle)
    tl.store(deviations + row, tl.sqrt(about_middle / size))
    tl.store(norms + row, tl.sqrt(tl.sum(square, 0)))


def moments(
    scores: Scores, target: RowIndex, target_in_support: bool, wanted: Collection[str]
) -> dict[str, PerRow]:
    """See `Backend.moments`."""
    names = [name for name in MOMENTS if name in wanted]
    if not names:
        return {}
    n, m = scores.shape
    found = {name: scores.new_empty(n) for name in MOMENTS}
    options = {"WITH_TARGET": target_in_support, **row_tile(m)}
    launch(moments_kernel, n, scores, target.contiguous(), *found.values(), m, row_stride(scores), **options)
    return {name: found[name] for name in names}
