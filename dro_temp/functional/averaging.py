"""Moving averages of positive numbers as logarithms, and means over duplicate samples."""

import torch
from torch import Tensor

from dro_temp import _faults
from dro_temp._checks import check_floats, check_number, check_share
from dro_temp._typing import PerRow, RowIndex


def log_average(log_u: PerRow, log_g: PerRow, gamma: float | Tensor) -> PerRow:
    r"""$\log\left((1-\gamma) u + \gamma g\right)$ from $\log u$ and $\log g$.

    Args:
        log_u: log of the average so far; -inf means "never seen" (0 is a legal value), and the result is then
            `log_g`: a first visit is not damped by gamma.
        log_g: log of the new value.
        gamma: weight of the new value, in (0, 1].

    Example:
        >>> log_average(torch.tensor([float("-inf"), 0.0]), torch.tensor([2.0, 0.0]), 0.5)
        tensor([2., 0.])

    Source: arXiv 2202.12387 (SogCLR), equation 7, in the log domain.
    """
    check_floats("log_g", log_g)
    if not isinstance(gamma, Tensor):  # a schedule's gamma is not read, which could wait for a device
        check_share("gamma", gamma)
    weight = torch.as_tensor(gamma, dtype=log_g.dtype, device=log_g.device)
    blended = torch.logaddexp(torch.log1p(-weight) + log_u, weight.log() + log_g)
    return torch.where(torch.isneginf(log_u), log_g, blended)


def log_mirror_average(log_u: PerRow, log_g: PerRow, alpha: float) -> PerRow:
    r"""A proximal mirror-descent step on $\nu = \log u$, whose weight of the new value is each row's own.

    With $y = e^{-\nu}$ it is $y' = (y + e^\alpha) / (1 + e^\alpha g)$, which is the average
    $u' = (1-\gamma) u + \gamma g$ with $\gamma = \sigma(\alpha + \nu)$: where the mean was large, the new value
    counts more. It is computed as $\nu' = \log(1 + e^\alpha g) - \log(1/u + e^\alpha)$.

    Args:
        log_u: log of the average so far; -inf means "never seen", and the result is then `log_g`.
        log_g: log of the new value.
        alpha: log of the step size, any finite number. Rows with log u well below -alpha hardly move; towards
            infinity the past is forgotten.

    Example:
        >>> log_mirror_average(torch.tensor([float("-inf"), 0.0]), torch.tensor([2.0, 2.0]), 0.0)
        tensor([2.0000, 1.4338])

    Source: arXiv 2602.02877 (SCENT), the SPMD update.
    """
    check_floats("log_g", log_g)
    check_number("alpha", alpha, 10.0)
    step = torch.as_tensor(alpha, dtype=log_g.dtype, device=log_g.device)
    seen = log_u.masked_fill(torch.isneginf(log_u), 0.0)
    moved = torch.logaddexp(torch.zeros_like(step), step + log_g) - torch.logaddexp(-seen, step)
    return torch.where(torch.isneginf(log_u), log_g, moved)


def _segments(index: RowIndex, x: PerRow) -> tuple[Tensor, Tensor]:
    """Order that sorts by (index, x), and each sorted row's segment number.

    Sorting by value as well makes every later sum independent of the order in which rows arrived.
    """
    by_value = x.argsort(stable=True)
    order = by_value[index[by_value].argsort(stable=True)]
    ordered = index[order]
    segment = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).long().cumsum(0)])
    return order, segment[: len(index)]


def _all_differ(index: RowIndex) -> bool:
    """Whether all numbers differ, if one sort on the CPU tells; False on devices and in graphs."""
    if torch.compiler.is_compiling() or not index.is_cpu or _faults.everywhere:
        return False
    ordered = index.sort().values
    return not bool((ordered[1:] == ordered[:-1]).any())


def mean_duplicates(index: RowIndex, x: PerRow) -> PerRow:
    """Mean of `x` over all rows with the same index, for each of those rows.

    Deterministic, and independent of the order of the rows.

    Example:
        >>> mean_duplicates(torch.tensor([7, 3, 7]), torch.tensor([1.0, 5.0, 3.0]))
        tensor([2., 5., 2.])
    """
    if _all_differ(index):
        return x.clone()
    order, segment = _segments(index, x)
    total = torch.zeros_like(x).index_add(0, segment, x[order])
    size = torch.zeros_like(x).index_add(0, segment, torch.ones_like(x))
    return torch.empty_like(x).index_copy(0, order, (total / size.clamp(min=1))[segment])


def rows_by_sample(
    losses: PerRow, weight: PerRow, index: RowIndex, group: RowIndex | None = None
) -> tuple[PerRow, PerRow, RowIndex, RowIndex | None]:
    """Rows of the same sample as one: their weighted mean loss, and the sum of their weights.

    Args:
        losses: of the rows, finite where the weight is zero.
        weight: of the rows, >= 0.
        index: number of each row's sample, >= 0; -1 for rows that do not count, whose weight is zero.
        group: number of each row's group, the same for all rows of a sample.

    Returns:
        Losses, weights, numbers and groups, [n] as the rows: samples in the order of their numbers, and then entries of
        weight 0 and number -1. Independent of the order of the rows.

    Example:
        >>> one = torch.ones(3)
        >>> rows_by_sample(torch.tensor([1.0, 5.0, 3.0]), one, torch.tensor([7, 3, 7]))[:3]
        (tensor([5., 2., 0.]), tensor([1., 2., 0.]), tensor([ 3,  7, -1]))
    """
    order, segment = _segments(index, losses.detach())
    mass = torch.zeros_like(weight).index_add(0, segment, weight[order])
    total = torch.zeros_like(losses).index_add(0, segment, (weight * losses)[order])
    sample = torch.full_like(index, -1).scatter(0, segment, index[order])
    group = None if group is None else torch.zeros_like(group).scatter(0, segment, group[order])
    return total / mass.masked_fill(mass == 0, 1.0), mass, sample, group


def combine_duplicates(index: RowIndex, log_g: PerRow) -> PerRow:
    """Log-mean-exp of `log_g` over all rows with the same index, for each of those rows.

    Two draws of one sample are two estimates of the same mean, so their mean is the better estimate.

    Example:
        >>> combine_duplicates(torch.tensor([7, 3, 7]), torch.tensor([0.0, 5.0, 0.0]))
        tensor([0., 5., 0.])
    """
    if _all_differ(index):
        return log_g.clone()
    order, segment = _segments(index, log_g)
    largest = torch.full_like(log_g, -torch.inf).scatter_reduce(0, segment, log_g[order], "amax")[segment]
    largest = torch.empty_like(log_g).index_copy(0, order, largest.masked_fill(largest.isinf(), 0.0))
    return mean_duplicates(index, (log_g - largest).exp()).log() + largest
