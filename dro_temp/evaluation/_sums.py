"""What is summed up over rows at one choice of temperatures."""

import math

import torch
from torch import Tensor

from dro_temp._typing import PerRow
from dro_temp.evaluation.calibration import CalibrationSums
from dro_temp.interfaces import Rows


class RowFacts:
    """What every temperature needs of a block of rows: computed once for all of them."""

    def __init__(self, rows: Rows) -> None:
        self.scores = rows.dense_scores
        self.label = rows.target.long()
        self.target = self.scores.gather(1, self.label[:, None])[:, 0]
        self.top, self.predicted = self.scores.max(1)
        self.correct = self.predicted == rows.target
        self.outcomes = rows.support_size
        self.weight = torch.ones_like(self.top) if rows.weight is None else rows.weight

    def log_partition(self, tau: PerRow) -> PerRow:
        """Log-sum-exp of s / tau, relative to the largest score: none of it is lost at a low temperature."""
        return ((self.scores - self.top[:, None]) / tau[:, None]).logsumexp(1)


class TemperatureSums:
    r"""Sums over rows whose temperatures one scheme chose.

    With $z = s / \tau$: the negative log-likelihood is $\log \sum_j e^{z_j} - z_y$, the confidence
    $e^{\max_j z_j} / \sum_j e^{z_j}$, and the robust loss $\tau (\mathrm{nll} - \log m + \rho)$, whose radius may be
    None: it then says nothing.
    """

    def __init__(self, rho: float | None, bins: int) -> None:
        self.rho = 0.0 if rho is None else rho
        self.calibration = CalibrationSums(bins)
        self.count = self._nll = self._robust = self._tau = 0.0
        #: One number a row: exact quantiles are worth it.
        self._taus: list[Tensor] = []

    def add(self, facts: RowFacts, tau: PerRow) -> None:
        """Take in a block of rows."""
        tau = tau.to(facts.scores.dtype)
        log_partition = facts.log_partition(tau)
        nll = (facts.top - facts.target) / tau + log_partition
        robust = tau * (nll - math.log(facts.outcomes) + self.rho)
        self.calibration.add((-log_partition).exp(), facts.correct, facts.weight)
        nll, robust, weight, tau = (x.cpu().double() for x in (nll, robust, facts.weight, tau))
        self.count += float(weight.sum())
        self._nll += float(weight @ nll)
        self._robust += float(weight @ robust)
        self._tau += float(weight @ tau)
        self._taus.append(tau.float())

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, in nats."""
        return self._nll / self.count

    @property
    def robust_loss(self) -> float:
        """Mean robust loss."""
        return self._robust / self.count

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(map(len, self._taus))

    @property
    def tau_mean(self) -> float:
        """Mean temperature."""
        return self._tau / self.count

    def quantiles(self, shares: tuple[float, ...]) -> dict[float, float]:
        """Temperatures below which these shares of the rows lie: each is one that occurred."""
        taus = torch.cat(self._taus).sort().values
        return {share: float(taus[round(share * (len(taus) - 1))]) for share in shares}
