"""The best temperature for all rows alike."""

import math
from collections.abc import Callable, Sequence

import torch

#: Temperatures -> the values of one or more curves at each, all from one sweep over the data.
Swept = Callable[[list[float]], Sequence[Sequence[float]]]

_POINTS = 13  # temperatures a sweep, which narrows the interval six-fold
_SWEEPS = 3  # to a step of 1/432 of its width in log tau; a parabola does the rest


def lowest_points(swept: Swept, curves: int, tau_min: float, tau_max: float) -> list[float]:
    """Where each curve is lowest: each sweep narrows all intervals of log tau around their lowest points.

    The robust loss has one minimum, being convex in tau, and so has the negative log-likelihood, in 1/tau.

    Args:
        swept: values of the curves, each with one minimum.
        curves: how many there are.
        tau_min: lower bound.
        tau_max: upper bound.
    """
    intervals = [(math.log(tau_min), math.log(tau_max))] * curves
    found = [0.0] * curves
    for _ in range(_SWEEPS):
        grids = [torch.linspace(*interval, _POINTS, dtype=torch.float64).tolist() for interval in intervals]
        values = swept([math.exp(x) for grid in grids for x in grid])
        for which, grid in enumerate(grids):
            here = [value[which] for value in values[which * _POINTS : (which + 1) * _POINTS]]
            lowest = min(range(_POINTS), key=here.__getitem__)
            intervals[which] = grid[max(lowest - 1, 0)], grid[min(lowest + 1, _POINTS - 1)]
            found[which] = _vertex(grid, here, lowest)
    return [min(max(math.exp(x), tau_min), tau_max) for x in found]


def _vertex(grid: list[float], values: list[float], lowest: int) -> float:
    """Where the parabola through the lowest point and its neighbours is lowest; at an end, the end."""
    if not 0 < lowest < len(grid) - 1:
        return grid[lowest]
    before, here, after = values[lowest - 1 : lowest + 2]
    bend = before - 2 * here + after
    step = grid[lowest + 1] - grid[lowest]
    return grid[lowest] + (0.5 * step * (before - after) / bend if bend > 0 else 0.0)
