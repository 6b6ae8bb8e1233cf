"""Rank correlation of weighted items."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp.functional.resampling import generator, interval, times_drawn


def places(x: Float[Tensor, "n"] | Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Place of each item among the distinct values, from 0: the input of `rank_correlation`.

    Example:
        >>> places(torch.tensor([0.5, 0.1, 0.5]))
        tensor([1, 0, 1])
    """
    place: Tensor = torch.unique(x, return_inverse=True)[1]
    return place


def rank_correlation(
    x: Int[Tensor, "n"], y: Int[Tensor, "n"], weight: Float[Tensor, "*resamples n"]
) -> Float[Tensor, "*resamples"]:
    """Spearman's correlation, Pearson's of mid-ranks, with each item counted `weight` times; NaN on a constant side.

    Ranks of a resample follow from how often each item was drawn, so that nothing is sorted again.

    Args:
        x: places of one side, see `places`.
        y: places of the other.
        weight: number of times that each item counts, >= 0; any real number.

    Example:
        >>> rank_correlation(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 1]), torch.ones(3))
        tensor(0.5000)
    """
    a, b = _centred_ranks(x, weight), _centred_ranks(y, weight)
    squares = (weight * a.square()).sum(-1) * (weight * b.square()).sum(-1)
    return torch.where(squares > 0, (weight * a * b).sum(-1) / squares.sqrt(), torch.nan)


def spearman(
    x: Tensor, y: Tensor, group: Tensor, resamples: int, *, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Spearman's correlation and its bootstrap interval; NaN where one side is all one value.

    Whole groups are drawn, with replacement: items of one concept are not independent.

    Args:
        x: [n].
        y: [n].
        group: number of each item's group, from 0, without gaps.
        resamples: number of bootstrap samples; the same ones on every call.
        seed: of the bootstrap.
        confidence: level of the interval.

    Example:
        >>> spearman(torch.arange(3), torch.tensor([0, 1, 2]), torch.arange(3), resamples=10)[0]
        1.0
    """
    sides = places(x), places(y)
    whole = float(rank_correlation(*sides, torch.ones(len(x), dtype=torch.float64)))
    if whole != whole:
        return whole, float("nan"), float("nan")
    chance, groups = generator(seed), 1 + int(group.max())
    draws = (times_drawn(groups, chance)[group] for _ in range(resamples))
    return whole, *interval(torch.stack([rank_correlation(*sides, times) for times in draws]), confidence)


def _centred_ranks(place: Tensor, weight: Tensor) -> Tensor:
    empty = weight.new_zeros(*weight.shape[:-1], int(place.max()) + 1)
    at = empty.index_add_(-1, place, weight)
    rank = (at.cumsum(-1) - 0.5 * at)[..., place]
    mean = (weight * rank).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    return rank - mean
