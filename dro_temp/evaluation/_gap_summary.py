"""From the losses of rows to means, and to how sure one can be of them."""

import torch
from torch import Tensor

from dro_temp._typing import PerRow
from dro_temp.evaluation._measured import Losses, weighted_mean
from dro_temp.evaluation._share import recovered_share
from dro_temp.evaluation._statistics import check_tau
from dro_temp.evaluation.gap_report import TemperatureSpread
from dro_temp.evaluation.report import SHARES
from dro_temp.functional.ranks import places, rank_correlation
from dro_temp.functional.resampling import generator, interval, times_drawn

_NEAR = 0.01  # of a bound
_TIMES_AT_A_TIME = 2**20  # resamples times rows, 8 MiB

Interval = tuple[float, float]


def spread(tau: PerRow, weight: PerRow, bounds: tuple[float, float]) -> TemperatureSpread:
    """How these temperatures are distributed."""
    mean = weighted_mean(tau, weight)
    value, order = tau.sort()
    below = weight[order].cumsum(0)
    # The lowest temperature that so much of the weight does not exceed.
    wanted = torch.tensor(SHARES, dtype=torch.float64) * below[-1] * (1 - 1e-12)
    place = torch.searchsorted(below, wanted).clamp(max=len(tau) - 1)
    near = (tau <= bounds[0] * (1 + _NEAR)) | (tau >= bounds[1] * (1 - _NEAR))
    return TemperatureSpread(
        mean,
        weighted_mean((tau - mean).square(), weight) ** 0.5,
        dict(zip(SHARES, value[place].tolist(), strict=True)),
        weighted_mean(near.double(), weight),
    )


class Figures:
    """Gap, share recovered and rank correlation, of the rows or of resamples of them."""

    def __init__(self, losses: Losses) -> None:
        self._weight = losses.weight
        self._losses = torch.stack([losses.at_tau, losses.at_constant, losses.at_optimum], 1)
        # As predictors give them: a constant in float32 is a constant.
        self._places = places(check_tau(losses.tau.float())), places(check_tau(losses.optimum.float()))

    def of(self, times: Tensor) -> list[tuple[float, float, float]]:
        """With each row counted so many times, [resamples n]."""
        weight = self._weight * times
        means = (weight @ self._losses / weight.sum(1, keepdim=True)).tolist()
        ranks = rank_correlation(*self._places, weight).tolist()
        return [
            (loss - optimum, recovered_share(loss, constant, optimum), rank)
            for (loss, constant, optimum), rank in zip(means, ranks, strict=True)
        ]

    def whole(self) -> tuple[float, float, float]:
        """Each row once."""
        return self.of(torch.ones(1, len(self._weight), dtype=torch.float64))[0]

    def intervals(self, resamples: int, confidence: float, seed: int) -> tuple[Interval, Interval, Interval]:
        """Percentile bootstrap over rows; NaN where nothing is defined."""
        chance, n = generator(seed), len(self._weight)
        at_once = max(1, _TIMES_AT_A_TIME // n)
        drawn: list[tuple[float, float, float]] = []
        while len(drawn) < resamples:
            several = min(at_once, resamples - len(drawn))
            drawn += self.of(torch.stack([times_drawn(n, chance) for _ in range(several)]))
        nothing = float("nan"), float("nan")
        gap, share, rank = (
            interval(torch.tensor(values, dtype=torch.float64), confidence) if value == value else nothing
            for value, values in zip(self.whole(), zip(*drawn, strict=True), strict=True)
        )
        return gap, share, rank
