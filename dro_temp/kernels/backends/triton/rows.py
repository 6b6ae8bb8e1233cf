"""Softmax sums and weights of rows: one program per row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.functional.statistics import ScoreProfile
from dro_temp.kernels.backends.protocol import SoftmaxPartials
from dro_temp.kernels.backends.triton.launch import launch, row_stride, row_tile, vector
from dro_temp.kernels.backends.triton.online import LOG2E, absorb, meet, start
from dro_temp.kernels.backends.triton.row_moments import moments


@triton.jit  # type: ignore[untyped-decorator]
def softmax_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `stride` apart; overwritten by the weights if those are to be stored
    tau,  # [n]
    tops,  # [n]
    totals,  # [n]
    excesses,  # [n]
    m,
    stride,
    STORES: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):
    """One row: sums in a first read, weights in a second."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * stride
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
    if STORES:
        for first in range(0, m, TILE):
            at = first + lanes
            s = tl.load(scores + at, mask=at < m, other=-float("inf"), eviction_policy="evict_first")
            tl.store(scores + at, tl.exp2((s - highest) * rate), mask=at < m)


def _softmax(scores: Scores, tau: PerRow, *, stores: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, m = scores.shape
    found = [scores.new_empty(n) for _ in range(3)]
    tau, stride = vector(tau, scores), row_stride(scores)
    launch(softmax_kernel, n, scores, tau, *found, m, stride, STORES=stores, **row_tile(m))
    top, total, excess = found
    return top, total, excess


def softmax_partials_(
    scores: Scores, tau: PerRow, *, mean_excess: bool, factor: torch.dtype | None = None
) -> SoftmaxPartials:
    """See `Backend.softmax_partials_`; the excess costs nothing here."""
    top, total, mean = _softmax(scores, tau, stores=True)
    return SoftmaxPartials(top, total, mean if mean_excess else None, scores.to(factor or scores.dtype))


def row_sums(scores: Scores, tau: PerRow) -> SoftmaxPartials:
    """See `Backend.row_sums`."""
    return SoftmaxPartials(*_softmax(scores, tau, stores=False))


def profile(scores: Scores) -> ScoreProfile:
    """See `Backend.profile`."""
    top, total, excess = _softmax(scores, scores.new_ones(len(scores)), stores=False)
    whole = torch.zeros(
        len(scores), dtype=torch.long, device=scores.device
    )  # a target inside the support is not read
    found = moments(scores, whole, True, ("mean", "std", "count"))
    return ScoreProfile(top, total, excess, found["mean"], found["std"], found["count"])
