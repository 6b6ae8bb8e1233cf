"""The oracle: each row's exact temperature."""

from dro_temp import functional as F
from dro_temp._checks import check_count, check_feasible, check_radius
from dro_temp._typing import PerRow
from dro_temp.interfaces import Reading, TemperaturePredictor


class OptimalTemperature(TemperaturePredictor):
    r"""$\tau_i^* = \arg\min_\tau F_i(\tau)$, the root of KL(p||U) = rho, solved for every row.

    Costs some forty passes over the scores and needs them in memory. It is the yardstick of every predictor:
    the mean of F at the predictor's tau minus that at tau* is never negative (the amortisation gap). For a row
    over classes or tokens it is the temperature whose softmax has entropy log m - rho.

    Args:
        rho: radius of the KL ball in nats; the loss's own.
        tau_min: lower bound, > 0.
        tau_max: upper bound.
        iterations: steps of the solver.

    Raises:
        ValueError: rho < 0, rho >= log m at a call, or bounds that are no interval.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[4.0, 0.0, 0.0, 0.0]]), torch.tensor([0]))
        >>> tau = dt.OptimalTemperature(0.5, tau_min=0.01, tau_max=10.0).of(rows)
        >>> dt.functional.kl_divergence(rows.margins, tau)
        tensor([0.5000])

    Source: arXiv 2404.04575, equation 6.
    """

    reads = frozenset({"support"})

    def __init__(self, rho: float, *, tau_min: float, tau_max: float, iterations: int = 40) -> None:
        super().__init__(tau_min=tau_min, tau_max=tau_max)
        check_radius(rho)
        self.rho, self.iterations = float(rho), check_count("iterations", iterations)

    def raw(self, reading: Reading) -> PerRow:
        """The solution."""
        assert reading.support is not None
        if reading.support.size > 0:
            check_feasible(self.rho, reading.support.size)
        # KL(p||U) does not change when a constant is added to a row: scores serve as well as margins, and the
        # target's identity is not needed.
        return F.optimal_tau(
            reading.support.scores,
            rho=self.rho,
            tau_min=self.tau_min,
            tau_max=self.tau_max,
            mask=reading.support.mask,
            iterations=self.iterations,
        )

    def bound(self, raw: PerRow) -> PerRow:
        """The solver stays inside; only rounding is left."""
        return raw.clamp(self.tau_min, self.tau_max)
