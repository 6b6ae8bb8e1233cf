"""Rank correlation of weighted items."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def places(x: Float[Tensor, "n"] | Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Place of each item among the distinct values, from 0: what `rank_correlation` wants to know of either side.

    Example:
        >>> places(torch.tensor([0.5, 0.1, 0.5]))
        tensor([1, 0, 1])
    """
    found: Tensor = torch.unique(x, return_inverse=True)[1]
    return found


def rank_correlation(
    x: Int[Tensor, "n"], y: Int[Tensor, "n"], weight: Float[Tensor, "*resamples n"]
) -> Float[Tensor, "*resamples"]:
    """Spearman's correlation, Pearson's of mid-ranks, with each item counted `weight` times; NaN on a constant side.

    Ranks of a resample follow from how often each item was drawn, so that nothing is sorted again.

    Args:
        x: places of one side, see `places`.
        y: places of the other.
        weight: number of times that each item is there, >= 0; any real number.

    Example:
        >>> rank_correlation(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 1]), torch.ones(3))
        tensor(0.5000)
    """
    a, b = _centred_ranks(x, weight), _centred_ranks(y, weight)
    squares = (weight * a.square()).sum(-1) * (weight * b.square()).sum(-1)
    return torch.where(squares > 0, (weight * a * b).sum(-1) / squares.sqrt(), torch.nan)


def _centred_ranks(place: Tensor, weight: Tensor) -> Tensor:
    empty = weight.new_zeros(*weight.shape[:-1], int(place.max()) + 1)
    at = empty.index_add_(-1, place, weight)
    rank = (at.cumsum(-1) - 0.5 * at)[..., place]
    mean = (weight * rank).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    return rank - mean
