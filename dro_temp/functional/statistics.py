"""What is known of a row of scores: its statistics, and which of its outcomes can happen."""

from collections.abc import Collection
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from dro_temp._checks import values_can_be_read
from dro_temp._tensors import log_of_size, row_groups
from dro_temp._typing import Mask, PerRow, RowIndex, Scores
from dro_temp.functional.kl import kl_weights, log_mean_exp, margins

#: Statistics that a loss can return for each row.
Statistic: TypeAlias = Literal["log_sum_exp", "kl", "entropy", "max", "mean", "std", "norm"]
STATISTICS: tuple[Statistic, ...] = ("log_sum_exp", "kl", "entropy", "max", "mean", "std", "norm")

#: An outcome that scores so far below its row's best cannot happen: a mask has banned it, by -inf, the least number of
#: a precision, or -1e4, in place of its score or added to it. -1e4, which bfloat16 makes -9984, is the least of those
#: in use; what is left is room for scores that lie a thousand apart. An outcome so far below that was not banned weighs
#: exp(-9000 / tau): in float32 nothing, up to tau = 86. Statistics, norms and projections of a row leave such outcomes
#: out, and so give what the row without them gives. kernels/backends/cpu/numbers.h has the same number.
IMPOSSIBLE_BELOW = 9e3

# Stands for "not an outcome". Finite: with -inf, the weighted score of such an outcome would be 0 * inf.
NOT_AN_OUTCOME = -1e30


class ScoreProfile(NamedTuple):
    r"""What a network may read of each row of scores.

    Args:
        row_max: largest score.
        sum_exp: sum of $e^{s_{ij} - \max_j s_{ij}}$, >= 1.
        mean_excess: mean of $s - \max s$ under the softmax at temperature 1, <= 0.
        mean: mean score of the outcomes that can happen, see `IMPOSSIBLE_BELOW`.
        std: standard deviation of theirs, as a whole population.
        possible: number of them, as a floating-point number.
    """

    row_max: PerRow
    sum_exp: PerRow
    mean_excess: PerRow
    mean: PerRow
    std: PerRow
    possible: PerRow


def support_mask(scores: Scores, target: RowIndex, target_in_support: bool) -> Mask | None:
    """True inside the support; None where every outcome is in it."""
    if target_in_support:
        return None
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, target[:, None], False)


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
    if values_can_be_read(scores):
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
    shifted = scores if shift is None else scores - shift[:, None]
    shifted = shifted if banned is None else shifted.masked_fill(banned, 0.0)
    return shifted @ weight.to(shifted.dtype).T


def score_profile(scores: Scores, mask: Mask | None = None) -> ScoreProfile:
    """Profiles of a block of scores, which stay.

    Args:
        scores: one row of scores per row.
        mask: True where an outcome counts; None: all do.
    """
    groups = row_groups(scores)
    if len(groups) == 1:
        return ScoreProfile(*_profile(scores, mask))
    found = [scores.new_empty(len(scores)) for _ in range(6)]
    for rows in groups:
        parts = _profile(scores[rows], None if mask is None else mask[rows])
        for whole, part in zip(found, parts, strict=True):
            whole[rows] = part
    return ScoreProfile(*found)


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


def score_moments(
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


def tilted_statistics(
    log_g: PerRow, target_over_tau: PerRow, mean_over_tau: PerRow, size: int, wanted: Collection[str]
) -> dict[str, PerRow]:
    r"""Log-sum-exp of s/tau, KL(p||U) and entropy of p = softmax(s/tau).

    Args:
        log_g: log-mean-exp of margins over tau.
        target_over_tau: the target's score over tau.
        mean_over_tau: E_p[s] over tau.
        size: m.
        wanted: names.
    """
    log_m = log_of_size(size, log_g)
    kl = mean_over_tau - target_over_tau - log_g
    every = {"log_sum_exp": log_g + log_m + target_over_tau, "kl": kl, "entropy": log_m - kl}
    return {name: value for name, value in every.items() if name in wanted}


@torch.no_grad()
def row_statistics(
    scores: Scores, target: RowIndex, tau: PerRow, target_in_support: bool, wanted: Collection[Statistic]
) -> dict[str, PerRow]:
    """Statistics of rows whose scores are in memory, over each row's support.

    Args:
        scores: one row of scores per row.
        target: column of each row's target.
        tau: temperature of each row.
        target_in_support: False to leave the target out of the support.
        wanted: names, of `STATISTICS`.
    """
    if not wanted:
        return {}
    mask = support_mask(scores, target, target_in_support)
    target_score = scores.gather(1, target[:, None]).squeeze(1)
    h = margins(scores, target)
    mean = target_score + (kl_weights(h, tau, mask) * h).sum(1)
    log_g = log_mean_exp(h / tau[:, None], mask)
    size = scores.shape[1] - (0 if target_in_support else 1)
    moments = score_moments(scores, target, target_in_support, wanted)
    return moments | tilted_statistics(log_g, target_score / tau, mean / tau, size, wanted)
