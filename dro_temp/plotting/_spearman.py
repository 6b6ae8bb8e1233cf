"""Rank correlation, and how sure one can be of it."""

import torch
from torch import Tensor

from dro_temp.functional.ranks import places, rank_correlation


def spearman(x: Tensor, y: Tensor, group: Tensor, resamples: int) -> tuple[float, float, float]:
    """Spearman's correlation and its 95 % bootstrap interval; NaN where one side is all one value.

    Whole groups are drawn, with replacement: items of one concept are no independent witnesses.

    Args:
        x: [n].
        y: [n].
        group: number of each item's group, from 0, without gaps.
        resamples: number of bootstrap samples; the same ones on every call.
    """
    sides = places(x), places(y)
    generator = torch.Generator().manual_seed(0)
    groups = 1 + int(group.max())
    drawn = []
    for _ in range(resamples):
        times = torch.randint(groups, (groups,), generator=generator).bincount(minlength=groups)
        drawn.append(float(rank_correlation(*sides, times[group].double())))
    known = torch.tensor([value for value in drawn if value == value], dtype=torch.float64)
    whole = float(rank_correlation(*sides, torch.ones(len(x), dtype=torch.float64)))
    if len(known) == 0 or whole != whole:
        return whole, float("nan"), float("nan")
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return whole, low, high
