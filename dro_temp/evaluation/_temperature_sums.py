"""Likelihood, calibration and robust loss of rows under several temperatures, and the best constant one."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from dro_temp.evaluation._batches import ScoredRows
from dro_temp.evaluation._reports import SHARES
from dro_temp.functional.reliability import Reliability, reliability_sums
from dro_temp.interfaces import TemperaturePredictor

_POINTS = 13  # temperatures per pass, which narrows the interval six-fold
_PASSES = 3  # to a step of 1/432 of its width in log tau; a parabola does the rest


class TemperatureSums:
    r"""Sums over rows at one temperature, or at those of a predictor.

    With $z = s / \tau$: the negative log-likelihood is $\log \sum_j e^{z_j} - z_y$, the confidence
    $e^{\max_j z_j} / \sum_j e^{z_j}$, and the robust loss $\tau (\mathrm{nll} - \log m + \rho)$. The Brier score, which
    torchmetrics 1.9 has for two classes only, is $\sum_j p_j^2 - 2 p_y + 1$; it is NaN unless asked for.
    """

    def __init__(
        self, tau: float | TemperaturePredictor, rho: float, bins: int, *, brier: bool = False
    ) -> None:
        self._tau, self._rho, self._brier = tau, rho, brier
        self._bins = torch.zeros(3, bins, dtype=torch.float64)
        self._sums = torch.zeros(5, dtype=torch.float64)
        self._taus: list[Tensor] = []  # one number per row: exact quantiles are worth it

    def add(self, rows: ScoredRows) -> None:
        """Add a block of rows."""
        chosen = self._tau
        tau = torch.full_like(rows.top, chosen) if isinstance(chosen, float) else chosen.predict(rows.rows)
        tau = tau.to(rows.scores.dtype)
        # Relative to the largest score: nothing is lost at a low temperature.
        z = (rows.scores - rows.top[:, None]) / tau[:, None]
        log_partition = z.logsumexp(1)
        nll = (rows.top - rows.target_score) / tau + log_partition
        robust = tau * (nll - math.log(rows.rows.support_size) + self._rho)
        confidence, correct, weight = (x.cpu() for x in ((-log_partition).exp(), rows.correct, rows.weight))
        self._bins += reliability_sums(confidence, correct, weight, self._bins.shape[1])
        squares = (z.mul_(2).logsumexp(1) - 2 * log_partition).exp() if self._brier else torch.nan
        brier = (squares - 2 * (-nll).exp() + 1).clamp(min=0)
        self._sums += (
            torch.stack([torch.ones_like(nll), nll, robust, tau, brier]).cpu().double() @ weight.double()
        )
        self._taus.append(tau.cpu().float())

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(map(len, self._taus))

    @property
    def means(self) -> tuple[float, float, float, float]:
        """Negative log-likelihood in nats, robust loss, temperature, and Brier score."""
        nll, robust, tau, brier = (self._sums[1:] / self._sums[0]).tolist()
        return nll, robust, tau, brier

    @property
    def reliability(self) -> Reliability:
        """Confidence and accuracy by bins of confidence."""
        return Reliability(*(tuple(column) for column in self._bins.tolist()))

    @property
    def quantiles(self) -> dict[float, float]:
        """Temperatures below which the `SHARES` of the rows lie; each is one that occurred."""
        taus = torch.cat(self._taus).sort().values
        return {share: float(taus[round(share * (len(taus) - 1))]) for share in SHARES}


def best_constants(
    blocks: Callable[[], Iterable[ScoredRows]], rho: float | None, tau_min: float, tau_max: float
) -> list[float]:
    """The constant of highest likelihood, and with a radius that of lowest robust loss; three passes over the data."""

    def losses(taus: list[float]) -> list[tuple[float, ...]]:
        sums = [TemperatureSums(tau, rho or 0.0, 1) for tau in taus]
        for rows in blocks():
            for s in sums:
                s.add(rows)
        return [s.means for s in sums]

    return minimisers(losses, 1 if rho is None else 2, tau_min, tau_max)


def minimisers(
    values_at: Callable[[list[float]], Sequence[Sequence[float]]], curves: int, low: float, high: float
) -> list[float]:
    """Where each of several curves is lowest, by grids in log tau that narrow around each one's lowest point.

    Each curve must have one minimum: the robust loss is convex in tau, and the negative log-likelihood in 1 / tau.
    `values_at` gives the values of all curves at several temperatures from one pass over the data.
    """
    intervals = [(math.log(low), math.log(high))] * curves
    lowest = [0.0] * curves
    for _ in range(_PASSES):
        grids = [torch.linspace(*interval, _POINTS, dtype=torch.float64).tolist() for interval in intervals]
        values = values_at([math.exp(x) for grid in grids for x in grid])
        for i, grid in enumerate(grids):
            curve = [value[i] for value in values[i * _POINTS : (i + 1) * _POINTS]]
            at = min(range(_POINTS), key=curve.__getitem__)
            intervals[i] = grid[max(at - 1, 0)], grid[min(at + 1, _POINTS - 1)]
            lowest[i] = grid[at]
            if 0 < at < _POINTS - 1:  # the vertex of the parabola through the lowest point and its neighbours
                before, here, after = curve[at - 1 : at + 2]
                bend = before - 2 * here + after
                lowest[i] += 0.5 * (grid[at + 1] - grid[at]) * (before - after) / bend if bend > 0 else 0.0
    return [min(max(math.exp(x), low), high) for x in lowest]
