"""Softmax sums and weights of rows, [n m]: one program per row.

A first read takes maximum, sum and moment at once (`online`); a second, which should find the row in the cache, writes
the weights over the scores (`launch.row_tile`).

Pairs, and rows with a transform that `tilted_rows` does not know, take these.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.backends.protocol import SoftmaxPartials
from dro_temp.kernels.backends.triton.launch import launch, row_stride, row_tile, vector
from dro_temp.kernels.backends.triton.online import LOG2E, add_score, empty_sums, reduce_lanes


@triton.jit  # type: ignore[untyped-decorator]
def softmax_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `stride` apart; overwritten by the weights if those are to be stored
    tau,  # [n]
    row_maxima,  # [n]
    sums_exp,  # [n]
    mean_excesses,  # [n]
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
    running_max, sum_exp, moment = empty_sums([TILE], scores.dtype.element_ty)
    for first in range(0, m, TILE):
        at = first + lanes
        # The second read should find the row in the cache.
        s = tl.load(scores + at, mask=at < m, other=-float("inf"), eviction_policy="evict_last")
        running_max, sum_exp, moment = add_score(running_max, sum_exp, moment, s, rate)
    highest, sum_exp, moment = reduce_lanes(running_max, sum_exp, moment, rate, 0)
    tl.store(row_maxima + row, highest)
    tl.store(sums_exp + row, sum_exp)
    tl.store(mean_excesses + row, moment / sum_exp)
    if STORES:
        for first in range(0, m, TILE):
            at = first + lanes
            s = tl.load(scores + at, mask=at < m, other=-float("inf"), eviction_policy="evict_first")
            tl.store(scores + at, tl.exp2((s - highest) * rate), mask=at < m)


def _softmax(scores: Scores, tau: PerRow, *, stores: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, m = scores.shape
    results = [scores.new_empty(n) for _ in range(3)]
    tau, stride = vector(tau, scores), row_stride(scores)
    launch(softmax_kernel, n, scores, tau, *results, m, stride, STORES=stores, **row_tile(m))
    row_max, sum_exp, mean_excess = results
    return row_max, sum_exp, mean_excess


def softmax_partials_(
    scores: Scores, tau: PerRow, *, mean_excess: bool, factor: torch.dtype | None = None
) -> SoftmaxPartials:
    """See `Backend.softmax_partials_`; the mean excess costs nothing here."""
    row_max, sum_exp, excess = _softmax(scores, tau, stores=True)
    return SoftmaxPartials(
        row_max, sum_exp, excess if mean_excess else None, scores.to(factor or scores.dtype)
    )


def row_sums(scores: Scores, tau: PerRow) -> SoftmaxPartials:
    """See `Backend.row_sums`."""
    return SoftmaxPartials(*_softmax(scores, tau, stores=False))
