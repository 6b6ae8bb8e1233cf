"""The best temperature for all rows alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

#: Temperatures -> mean (negative log-likelihood, robust loss) at each, all from one sweep over the data.
Swept = Callable[[list[float]], list[tuple[float, float]]]

_POINTS = 13  # temperatures a sweep, which narrows the interval six-fold
_SWEEPS = 3  # to a step of 1/432 of its width in log tau; a parabola does the rest


@dataclass(frozen=True)
class BestConstants:
    """The temperatures that minimise the mean negative log-likelihood, and the mean robust loss."""

    likelihood: float
    robust: float


def best_constants(swept: Swept, tau_min: float, tau_max: float) -> BestConstants:
    """Search log tau between the bounds, both at once: each sweep narrows both intervals around their lowest point.

    Both have one minimum: the robust loss is convex in tau, the negative log-likelihood in 1/tau.
    """
    intervals = [(math.log(tau_min), math.log(tau_max))] * 2
    found = [0.0, 0.0]
    for _ in range(_SWEEPS):
        grids = [torch.linspace(*interval, _POINTS, dtype=torch.float64).tolist() for interval in intervals]
        values = swept([math.exp(x) for grid in grids for x in grid])
        for which, grid in enumerate(grids):
            here = [value[which] for value in values[which * _POINTS : (which + 1) * _POINTS]]
            lowest = min(range(_POINTS), key=here.__getitem__)
            intervals[which] = grid[max(lowest - 1, 0)], grid[min(lowest + 1, _POINTS - 1)]
            found[which] = _vertex(grid, here, lowest)
    likelihood, robust = (min(max(math.exp(x), tau_min), tau_max) for x in found)
    return BestConstants(likelihood, robust)


def _vertex(grid: list[float], values: list[float], lowest: int) -> float:
    """Where the parabola through the lowest point and its neighbours is lowest; at an end, the end."""
    if not 0 < lowest < len(grid) - 1:
        return grid[lowest]
    before, here, after = values[lowest - 1 : lowest + 2]
    bend = before - 2 * here + after
    step = grid[lowest + 1] - grid[lowest]
    return grid[lowest] + (0.5 * step * (before - after) / bend if bend > 0 else 0.0)
