"""Statistics of rows of scores, and which of their outcomes can happen."""

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

#: An outcome that scores so far below its row's maximum cannot happen: a mask has excluded it, by -inf, the smallest
#: number of a precision, or -1e4, instead of its score or added to it. -1e4, which bfloat16 rounds to -9984, is the
#: smallest of those in use; the rest is room for scores that differ by a thousand. An outcome that low without a mask
#: has the weight exp(-9000 / tau): 0 in float32, up to tau = 86. Statistics, norms and projections of a row are those
#: of the row without such outcomes. kernels/backends/cpu/numbers.h has the same number.
IMPOSSIBLE_BELOW = 9e3

# Stands for "not an outcome". Finite: with -inf, the weighted score of such an outcome would be 0 * inf.
NOT_AN_OUTCOME = -1e30


class ScoreProfile(NamedTuple):
    r"""Statistics of each row of scores that a network may read.

    Args:
        row_max: largest score.
        sum_exp: sum of $e^{s_{ij} - \max_j s_{ij}}$, >= 1.
        mean_excess: mean of $s - \max s$ under the softmax at temperature 1, <= 0.
        mean: mean score of the outcomes that can happen, see `IMPOSSIBLE_BELOW`.
        std: their standard deviation, as a whole population.
        possible: their number, as a floating-point number; 1 for a row without outcomes, which is read as zeros.
    """

    row_max: PerRow
    sum_exp: PerRow
    mean_excess: PerRow
    mean: PerRow
    std: PerRow
    possible: PerRow


class LabelStanding(NamedTuple):
    r"""Where each row's target stands among all columns, at temperature 1; detached.

    Args:
        gap: largest score minus the target's, >= 0; 0 where no outcome scores higher.
        log_probability: $\log \mathrm{softmax}(s_i)_{t_i}$, <= 0.
        mean_margin: mean score of the outcomes that can happen, see `IMPOSSIBLE_BELOW`, minus the target's.
    """

    gap: PerRow
    log_probability: PerRow
    mean_margin: PerRow


def label_standing(target_score: PerRow, profile: ScoreProfile) -> LabelStanding:
    """From the targets' scores, and the profile of all columns."""
    gap = profile.row_max - target_score
    return LabelStanding(gap, -gap - profile.sum_exp.log(), profile.mean - target_score)


def support_mask(
    scores: Scores, target: RowIndex, target_in_support: bool, excluded: Mask | None = None
) -> Mask | None:
    """True inside the support; None where every outcome is in it. `excluded` is True where groups exclude a column."""
    if target_in_support:
        return None if excluded is None else ~excluded
    inside = torch.ones_like(scores, dtype=torch.bool) if excluded is None else ~excluded
    return inside.scatter_(1, target[:, None], False)


def impossible(scores: Scores, mask: Mask | None = None) -> Mask | None:
    """True where an outcome is masked or cannot happen, see `IMPOSSIBLE_BELOW`; None if there are known to be none.

    The mask is True where an outcome counts; the maximum is over those.
    """
    outside = None if mask is None else ~mask
    if scores.numel() == 0:
        return outside
    floor = (scores if outside is None else scores.masked_fill(outside, -torch.inf)).amax(
        1
    ) - IMPOSSIBLE_BELOW
    if values_can_be_read(scores):
        inside = scores if outside is None else scores.masked_fill(outside, torch.inf)
        if not bool((inside.amin(1) < floor).any()):
            return outside
    below = scores < floor[:, None]
    return below if outside is None else below | outside


def projected(scores: Scores, weight: Tensor, shift: PerRow | None) -> Tensor:
    """`(scores - shift) @ weight.T`, [n K], without the outcomes that cannot happen."""
    banned = impossible(scores)
    shifted = scores if shift is None else scores - shift[:, None]
    shifted = shifted if banned is None else shifted.masked_fill(banned, 0.0)
    return shifted @ weight.to(shifted.dtype).T


def score_profile(scores: Scores, mask: Mask | None = None) -> ScoreProfile:
    """Profiles of a block of scores, which stay; the mask is True where an outcome counts."""
    parts = [
        _profile(scores[rows], None if mask is None else mask[rows])
        for rows in row_groups(scores) or [slice(None)]
    ]
    return ScoreProfile(*map(torch.cat, zip(*parts, strict=True)))


def _profile(scores: Scores, mask: Mask | None) -> tuple[PerRow, ...]:
    excluded = impossible(scores, mask)
    if excluded is None:
        size = scores.new_full((len(scores),), scores.shape[1])
        mean = scores.mean(1)
        deviation = scores - mean[:, None]
    else:
        size = (~excluded).sum(1).to(scores.dtype)
        # A row without outcomes (a pair alone in its batch) is read as zeros: NaN would reach every parameter.
        outside = torch.where(size > 0, -torch.inf, 0.0).to(scores.dtype)[:, None]
        size = size.clamp(min=1.0)
        mean = scores.masked_fill(excluded, 0.0).sum(1) / size
        deviation = (scores - mean[:, None]).masked_fill(excluded, 0.0)
        scores = torch.where(excluded, outside, scores)
    std = (deviation.square_().sum(1) / size).sqrt()
    row_max = scores.amax(1)
    # An outcome of -inf has weight 0, and 0 times -inf would be NaN.
    below = (scores - row_max[:, None]).clamp_(min=torch.finfo(scores.dtype).min)
    weights = below.exp()
    sum_exp = weights.sum(1)
    return row_max, sum_exp, below.mul_(weights).sum(1) / sum_exp, mean, std, size


def score_moments(
    scores: Scores, target: RowIndex, target_in_support: bool, names: Collection[str]
) -> dict[str, PerRow]:
    """Those of max, mean, std and norm that are in `names`, over the possible outcomes of the support."""
    if not set(names) & {"max", "mean", "std", "norm"}:
        return {}
    p = score_profile(scores, support_mask(scores, target, target_in_support))
    norm = (p.possible * (p.mean.square() + p.std.square())).sqrt()
    moments = {"max": p.row_max, "mean": p.mean, "std": p.std, "norm": norm}
    return {name: value for name, value in moments.items() if name in names}


def tilted_statistics(
    log_g: PerRow,
    target_over_tau: PerRow,
    mean_over_tau: PerRow,
    log_m: float | Tensor,
    names: Collection[str],
) -> dict[str, PerRow]:
    r"""Log-sum-exp of s/tau, KL(p||U) and entropy of p = softmax(s/tau), from the log-mean-exp of margins over tau.

    `mean_over_tau` is E_p[s] over tau, and m is the number of outcomes, of all rows or of each.
    """
    kl = mean_over_tau - target_over_tau - log_g
    statistics = {"log_sum_exp": log_g + log_m + target_over_tau, "kl": kl, "entropy": log_m - kl}
    return {name: value for name, value in statistics.items() if name in names}


def row_statistics(
    scores: Scores,
    target: RowIndex,
    tau: PerRow,
    target_in_support: bool,
    names: Collection[Statistic],
    excluded: Mask | None = None,
) -> dict[str, PerRow]:
    """Those of `STATISTICS` that are in `names`, of rows whose scores are in memory, over each row's support.

    `excluded` is True where groups exclude a column; never at a target.
    """
    if not names:
        return {}
    if excluded is not None:
        scores = scores.masked_fill(excluded, NOT_AN_OUTCOME)
    mask = support_mask(scores, target, target_in_support, excluded)
    target_score = scores.gather(1, target[:, None]).squeeze(1)
    h = margins(scores, target)
    mean = target_score + (kl_weights(h, tau, mask) * h).sum(1)
    log_g = log_mean_exp(h / tau[:, None], mask)
    if excluded is None or mask is None:
        log_m = log_of_size(scores.shape[1] - (0 if target_in_support else 1), log_g)
    else:
        log_m = mask.sum(1).clamp(min=1).to(log_g.dtype).log()
    moments = score_moments(scores.detach(), target, target_in_support, names)
    return moments | tilted_statistics(log_g, target_score / tau, mean / tau, log_m, names)
