"""Passes over rows that end inside the block: one program per row."""

import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.pair_passes import RowSums
from dro_temp.kernels.passes import Tilted
from dro_temp.kernels.triton_passes.launch import launch, row_stride, row_tile, vector
from dro_temp.kernels.triton_passes.online import LOG2E, absorb, meet, start


@triton.jit  # type: ignore[untyped-decorator]
def tilt_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `score_stride` apart
    tau,  # [n]
    weights,  # [n m], rows `weight_stride` apart; may be the scores
    tops,  # [n]
    totals,  # [n]
    excesses,  # [n]
    m,
    score_stride,
    weight_stride,
    TILE: tl.constexpr,  # noqa: N803
):
    """One row: sums in a first read, weights in a second."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * score_stride
    weights += row * weight_stride
    rate = LOG2E / tl.load(tau + row)
    lanes = tl.arange(0, TILE)
    top, total, moment = start([TILE], scores.dtype.element_ty)
    for first in range(0, m, TILE):
        at = first + lanes
        # The second read should find the row in the cache.
        s = tl.load(scores + at, mask=at < m, other=-float("inf"), eviction_policy="evict_last")
        top, total, moment = absorb(top, total, moment, s, rate)
    highest, total, moment = meet(top, total, moment, rate, 0)
    tl.store(tops + row, highest)
    tl.store(totals + row, total)
    tl.store(excesses + row, moment / total)
    for first in range(0, m, TILE):
        at = first + lanes
        s = tl.load(scores + at, mask=at < m, other=-float("inf"), eviction_policy="evict_first")
        tl.store(weights + at, tl.exp2((s - highest) * rate), mask=at < m)


def _tilt(scores: Scores, tau: PerRow, weights: Scores) -> tuple[Tensor, Tensor, Tensor]:
    n, m = scores.shape
    top, total, excess = (scores.new_empty(n) for _ in range(3))
    strides = row_stride(scores), row_stride(weights)
    launch(
        tilt_kernel, n, scores, vector(tau, scores), weights, top, total, excess, m, *strides, **row_tile(m)
    )
    return top, total, excess


def tilt_(scores: Scores, tau: PerRow, *, excess: bool) -> Tilted:
    """See `passes.tilt_`; the excess comes for nothing."""
    top, total, mean = _tilt(scores, tau, scores)
    return Tilted(scores, top, total, mean if excess else None)


def sum_rows(scores: Scores, tau: PerRow, weights: Scores, spare: Scores) -> RowSums:
    """See `pair_passes.sum_rows`; no scratch is needed."""
    return RowSums(*_tilt(scores, tau, weights))
