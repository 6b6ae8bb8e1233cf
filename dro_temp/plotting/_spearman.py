"""Rank correlation, and how sure one can be of it."""

import torch
from torch import Tensor


def spearman(x: Tensor, y: Tensor, group: Tensor, resamples: int) -> tuple[float, float, float]:
    """Spearman's correlation and its 95 % bootstrap interval; NaN where one side is all one value.

    Whole groups are drawn, with replacement: items of one concept are no independent witnesses. Ranks of a resample
    follow from how often each item was drawn, so that nothing is sorted again.

    Args:
        x: [n].
        y: [n].
        group: number of each item's group, from 0, without gaps.
        resamples: number of bootstrap samples; the same ones on every call.
    """
    places = [torch.unique(side, return_inverse=True)[1] for side in (x, y)]
    generator = torch.Generator().manual_seed(0)
    groups = 1 + int(group.max())
    drawn = []
    for _ in range(resamples):
        times = torch.randint(groups, (groups,), generator=generator).bincount(minlength=groups)
        drawn.append(_correlation(places, times[group].double()))
    known = torch.tensor([value for value in drawn if value == value], dtype=torch.float64)
    whole = _correlation(places, torch.ones(len(x), dtype=torch.float64))
    if len(known) == 0 or whole != whole:
        return whole, float("nan"), float("nan")
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return whole, low, high


def _correlation(places: list[Tensor], weight: Tensor) -> float:
    """Pearson's correlation of mid-ranks, each item counted `weight` times."""
    ranks = []
    for place in places:
        at = torch.bincount(place, weight)
        middle = at.cumsum(0) - 0.5 * at
        rank = middle[place]
        ranks.append(rank - (weight @ rank) / weight.sum())
    a, b = ranks
    squares = (weight @ a.square()) * (weight @ b.square())
    return float((weight * a) @ b / squares.sqrt()) if float(squares) > 0 else float("nan")
