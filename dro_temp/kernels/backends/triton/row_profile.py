"""Statistics of rows of scores, [n m], that a network may read or a loss returns: one program per row, one read.

Maximum, sum of exponentials and their moment at temperature 1; number, mean and squares of the outcomes that can
happen. Which can is known once the maximum is: a row that holds others (a mask of -1e4, say) is read once more.
"""

from collections.abc import Collection

import torch
import triton
import triton.language as tl

from dro_temp._typing import PerRow, RowIndex, Scores
from dro_temp.functional.statistics import IMPOSSIBLE_BELOW, ScoreProfile
from dro_temp.kernels.backends.triton.launch import launch, row_stride, row_tile
from dro_temp.kernels.backends.triton.online import LOG2E, LOWEST, zeros

BELOW_MAX = tl.constexpr(IMPOSSIBLE_BELOW)


@triton.jit  # type: ignore[untyped-decorator]
def row_profile_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `stride` apart
    target,  # [n]
    row_maxima,  # [n]
    sums_exp,  # [n]
    mean_excesses,  # [n]
    means,  # [n]
    deviations,  # [n]
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
    dtype = row_maxima.dtype.element_ty
    lanes = tl.arange(0, TILE)
    highest = tl.full([], LOWEST, dtype)
    sum_exp, moment = zeros(TILE, dtype), zeros(TILE, dtype)
    # Distances to a score of the row's own: squares of scores would lose their digits far from zero.
    shift = tl.full([], 0.0, dtype)
    first_sum, square, lowest = zeros(TILE, dtype), zeros(TILE, dtype), tl.full([TILE], float("inf"), dtype)
    for first in range(0, m, TILE):
        at = first + lanes
        inside = at < m
        if not WITH_TARGET:
            inside = inside & (at != own)
        s = tl.load(scores + at, mask=inside, other=-float("inf")).to(dtype)
        top = tl.maximum(highest, tl.max(s, 0))
        # The sums move to a new maximum; a branch for the usual case, that it stays, costs more than it saves.
        moved = highest - top
        decay = tl.exp2(moved * LOG2E)
        step = s - top
        weight = tl.exp2(step * LOG2E)
        moment = (moment + moved * sum_exp) * decay + weight * tl.maximum(
            step, LOWEST
        )  # -inf times zero would be NaN
        sum_exp = sum_exp * decay + weight
        highest = top
        shift = tl.where(first == 0, top, shift)
        distance = tl.where(inside, s - shift, 0.0)
        first_sum += distance
        square += distance * distance
        lowest = tl.minimum(lowest, tl.where(inside, s, float("inf")))
    total, excess = tl.sum(sum_exp, 0), tl.sum(moment, 0)
    size = tl.full([], 0.0, dtype) + m
    if not WITH_TARGET:
        size -= 1.0
    floor = highest - BELOW_MAX
    if tl.min(lowest, 0) < floor:
        count = zeros(TILE, dtype)
        first_sum, square, shift = zeros(TILE, dtype), zeros(TILE, dtype), highest
        for first in range(0, m, TILE):
            at = first + lanes
            inside = at < m
            if not WITH_TARGET:
                inside = inside & (at != own)
            s = tl.load(scores + at, mask=inside, other=-float("inf")).to(dtype)
            inside = inside & ((s < floor) == 0)  # s >= floor would exclude NaN
            distance = tl.where(inside, s - highest, 0.0)
            count += tl.where(inside, 1.0, 0.0)
            first_sum += distance
            square += distance * distance
        size = tl.sum(count, 0)
    of_row = tl.sum(first_sum, 0) / size
    mean = shift + of_row
    square_about_mean = tl.sum(square - 2.0 * of_row * first_sum, 0) + size * of_row * of_row
    tl.store(row_maxima + row, highest)
    tl.store(sums_exp + row, total)
    tl.store(mean_excesses + row, excess / total)
    tl.store(means + row, mean)
    tl.store(deviations + row, tl.sqrt(tl.maximum(square_about_mean / size, 0.0)))
    tl.store(counts + row, size)


def _profile(scores: Scores, target: RowIndex, target_in_support: bool) -> ScoreProfile:
    n, m = scores.shape
    dtype = torch.promote_types(scores.dtype, torch.float32)
    results = [scores.new_empty(n, dtype=dtype) for _ in range(6)]
    options = {"WITH_TARGET": target_in_support, **row_tile(m)}
    launch(row_profile_kernel, n, scores, target.contiguous(), *results, m, row_stride(scores), **options)
    return ScoreProfile(*results)


def profile(scores: Scores) -> ScoreProfile:
    """See `Backend.profile`."""
    unread = torch.zeros(
        len(scores), dtype=torch.long, device=scores.device
    )  # the target, inside the support
    return _profile(scores, unread, True)


def moments(
    scores: Scores, target: RowIndex, target_in_support: bool, names: Collection[str]
) -> dict[str, PerRow]:
    """See `Backend.moments`."""
    if not {"max", "mean", "std", "norm"} & set(names):
        return {}
    p = _profile(scores, target, target_in_support)
    norm = p.possible.sqrt() * torch.hypot(p.std, p.mean)
    values = {"max": p.row_max, "mean": p.mean, "std": p.std, "norm": norm}
    return {name: value for name, value in values.items() if name in names}
