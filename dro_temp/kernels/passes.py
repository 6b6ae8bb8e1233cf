"""The work on a block of scores, in plain PyTorch; kernels for a device have the same names and signatures."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp._typing import Mask, PerRow, RowIndex, Scores
from dro_temp.kernels.pair_passes import sum_rows as sum_rows
from dro_temp.kernels.products import add_up as add_up
from dro_temp.kernels.products import scorer as scorer

#: An outcome that scores so far below its row's best cannot happen: a mask has banned it, by -inf, the least number of
#: a precision, or -1e4, in place of its score or added to it. -1e4, which bfloat16 makes -9984, is the least of those
#: in use; what is left is room for scores that lie a thousand apart. An outcome so far below that was not banned weighs
#: exp(-9000 / tau): in float32 nothing, up to tau = 86. Statistics, norms and projections of a row leave such outcomes
#: out, and so give what the row without them gives. native_passes/numbers.h has the same number.
IMPOSSIBLE_BELOW = 9e3

# Stands for "not an outcome". Finite: with -inf, the weighted score of such an outcome would be 0 * inf.
NOT_AN_OUTCOME = -1e30


@dataclass(frozen=True)
class Tilted:
    r"""A block of rows after exponential tilting.

    Args:
        weights: $e_{ij} = e^{(s_{ij} - \max_j s_{ij}) / \tau_i}$, not normalised.
        top: largest score of each row.
        total: sum of each row's weights, >= 1.
        excess: $\mathrm{E}_p[s] - \max s$ under p = weights / total, or None.
    """

    weights: Scores
    top: PerRow
    total: PerRow
    excess: PerRow | None


@dataclass(frozen=True)
class Profile:
    r"""What a network may read of each row of scores.

    Args:
        top: largest score.
        total: sum of $e^{s_{ij} - \max_j s_{ij}}$, >= 1.
        excess: mean of $s - \max s$ under the softmax at temperature 1, <= 0.
        mean: mean score of the outcomes that can happen, see `IMPOSSIBLE_BELOW`.
        std: standard deviation of theirs, as a whole population.
        count: number of them.
    """

    top: PerRow
    total: PerRow
    excess: PerRow
    mean: PerRow
    std: PerRow
    count: PerRow


def impossible(scores: Scores, mask: Mask | None = None) -> Mask | None:
    """True where an outcome cannot happen, see `IMPOSSIBLE_BELOW`; None where it is known that all can.

    Args:
        scores: one row of scores per row.
        mask: True where an outcome counts; None: all do. The best is the best of those.
    """
    if scores.numel() == 0:
        return None
    top = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).amax(1)
    floor = top - IMPOSSIBLE_BELOW
    waits = scores.device.type != "cpu" or torch.compiler.is_compiling()
    if not (waits or torch._C._are_functorch_transforms_active()):
        inside = scores if mask is None else scores.masked_fill(~mask, torch.inf)
        if not bool((inside.amin(1) < floor).any()):
            return None
    return scores < floor[:, None]


def projected(scores: Scores, weight: Tensor, shift: PerRow | None) -> Tensor:
    """`(scores - shift) @ weight.T`, to which outcomes that cannot happen add nothing.

    Args:
        scores: one row of scores per row.
        weight: [K m].
        shift: subtracted from all scores of a row.
    """
    banned = impossible(scores)
    held = scores if shift is None else scores - shift[:, None]
    held = held if banned is None else held.masked_fill(banned, 0.0)
    return held @ weight.to(held.dtype).T


def profile(scores: Scores, mask: Mask | None = None) -> Profile:
    """Profiles of a block of scores, which stay.

    Args:
        scores: one row of scores per row.
        mask: True where an outcome counts; None: all do.
    """
    groups = row_groups(scores)
    if len(groups) == 1:
        return Profile(*_profile(scores, mask))
    found = [scores.new_empty(len(scores)) for _ in range(6)]
    for rows in groups:
        parts = _profile(scores[rows], None if mask is None else mask[rows])
        for whole, part in zip(found, parts, strict=True):
            whole[rows] = part
    return Profile(*found)


def _profile(scores: Scores, mask: Mask | None) -> tuple[PerRow, ...]:
    banned = impossible(scores, mask)
    out = _either(banned, None if mask is None else ~mask)
    if out is None:
        size = scores.new_full((len(scores),), scores.shape[1])
        mean = scores.mean(1)
        about = scores - mean[:, None]
    else:
        size = (~out).sum(1).to(scores.dtype)
        mean = scores.masked_fill(out, 0.0).sum(1) / size
        about = (scores - mean[:, None]).masked_fill(out, 0.0)
        scores = scores.masked_fill(out, -torch.inf)
    std = (about.square_().sum(1) / size).sqrt()
    top = scores.amax(1)
    # -inf, an outcome that cannot happen, weighs nothing; 0 times -inf would be NaN.
    below = (scores - top[:, None]).clamp_(min=torch.finfo(scores.dtype).min)
    weights = below.exp()
    total = weights.sum(1)
    return top, total, below.mul_(weights).sum(1) / total, mean, std, size


def _either(a: Mask | None, b: Mask | None) -> Mask | None:
    return (b if a is None else a) if a is None or b is None else a | b


def tilt_(scores: Scores, tau: PerRow, *, excess: bool, factor: torch.dtype | None = None) -> Tilted:
    """Tilt a block of scores, in place.

    Args:
        scores: overwritten by the weights.
        tau: temperature of each row.
        excess: whether that is wanted, too.
        factor: precision that the weights are wanted in; None: that of the scores. Their sums are of what they were
            before that rounding.
    """
    top, total = (scores.new_empty(len(scores)) for _ in range(2))
    mean = torch.empty_like(top) if excess else None
    for rows in row_groups(scores):
        weights = scores[rows]
        torch.amax(weights, 1, out=top[rows])
        weights.sub_(top[rows, None])
        below = weights.clone() if excess else None
        weights.div_(tau[rows, None]).exp_()
        torch.sum(weights, 1, out=total[rows])
        if mean is not None and below is not None:
            mean[rows] = below.mul_(weights).sum(1) / total[rows]
    return Tilted(scores.to(factor or scores.dtype), top, total, mean)


def row_groups(scores: Scores) -> list[slice]:
    """Rows of a block, so few at a time that they stay in the processor's cache from pass to pass.

    Many at once on a device, where launching costs more. All at once in a graph, which would repeat a loop's body for
    each group and serve that number of groups only.
    """
    if torch.compiler.is_compiling():
        return [slice(None)]
    n, m = scores.shape
    step = max((2**18 if scores.device.type == "cpu" else 2**26) // max(m, 1), 1)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def moments(
    scores: Scores, target: RowIndex, target_in_support: bool, wanted: Collection[str]
) -> dict[str, PerRow]:
    """Those of max, mean, std and norm that are wanted, over the outcomes of the support that can happen."""
    found: dict[str, PerRow] = {}
    if not wanted:
        return found
    inside = None
    if not target_in_support:
        inside = torch.ones_like(scores, dtype=torch.bool).scatter_(1, target[:, None], False)
    banned = impossible(scores, inside)
    if banned is not None:
        return _moments_inside(scores, ~banned if inside is None else inside & ~banned, wanted)
    m = scores.shape[1]
    own = scores.gather(1, target[:, None]).squeeze(1)
    outside = torch.zeros_like(own) if target_in_support else own
    size = m - (0 if target_in_support else 1)
    if "max" in wanted:
        inside = scores if target_in_support else scores.scatter(1, target[:, None], NOT_AN_OUTCOME)
        found["max"] = inside.amax(1)
    if "mean" in wanted or "std" in wanted:
        found["mean"] = (scores.sum(1) - outside) / size
    if "norm" in wanted:
        found["norm"] = _root(torch.linalg.vector_norm(scores, dim=1).square() - outside.square())
    if "std" in wanted:
        # About the mean, not from the sum of squares: scores may lie far from zero.
        about = norm_about(scores, found["mean"]).square()
        if not target_in_support:
            about = about - (own - found["mean"]).square()
        found["std"] = _root(about) / size**0.5
    return {name: value for name, value in found.items() if name in wanted}


def _moments_inside(scores: Scores, inside: Mask, wanted: Collection[str]) -> dict[str, PerRow]:
    held, size = scores.masked_fill(~inside, 0.0), inside.sum(1)
    mean = held.sum(1) / size
    about = (scores - mean[:, None]).masked_fill_(~inside, 0.0)
    found = {
        "max": scores.masked_fill(~inside, NOT_AN_OUTCOME).amax(1),
        "mean": mean,
        "std": torch.linalg.vector_norm(about, dim=1) / size.sqrt(),
        "norm": torch.linalg.vector_norm(held, dim=1),
    }
    return {name: value for name, value in found.items() if name in wanted}


def _root(square: Tensor) -> Tensor:
    return square.clamp(min=0.0).sqrt()


def norm_about(scores: Scores, centre: PerRow) -> PerRow:
    """Norm of each row of `scores - centre`, a few rows at a time: no second block is needed."""
    parts = [
        torch.linalg.vector_norm(scores[rows] - centre[rows, None], dim=1) for rows in row_groups(scores)
    ]
    return torch.cat(parts) if parts else centre.clone()
