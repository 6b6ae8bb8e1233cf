"""The oracle: each row's exact temperature."""

import math

from dro_temp import functional as F
from dro_temp._checks import check_count, check_feasible, check_radius, check_real, values_can_be_read
from dro_temp._tensors import at_least_float32
from dro_temp._typing import PerRow
from dro_temp.interfaces import PredictorInputs, Support, TemperaturePredictor


class OptimalTemperature(TemperaturePredictor):
    r"""$\tau_i^* = \arg\min_\tau F_i(\tau)$, the root of KL(p||U) = rho, solved for every row.

    Makes about forty passes over the scores, which must fit in memory. The reference for every predictor: the mean of F
    at the predictor's tau minus that at tau* is never negative (the amortisation gap). For a row over classes or tokens
    it is the temperature whose softmax has entropy log m - rho.

    Args:
        rho: radius of the KL ball in nats; the loss's own.
        tau_min: lower bound, > 0.
        tau_max: upper bound.
        iterations: steps of the solver.
        outcomes: the number of outcomes that rho was chosen for; None: any.

    Raises:
        ValueError: rho < 0, rho >= log m at a call, another number of outcomes, or bounds that do not form an interval.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[4.0, 0.0, 0.0, 0.0]]), torch.tensor([0]))
        >>> tau = dt.OptimalTemperature(0.5, tau_min=0.01, tau_max=10.0).predict(rows)
        >>> dt.functional.kl_divergence(rows.margins, tau)
        tensor([0.5000])

    Source: arXiv 2404.04575, equation 6.
    """

    reads = frozenset({"support"})

    def __init__(
        self, rho: float, *, tau_min: float, tau_max: float, iterations: int = 40, outcomes: int | None = None
    ) -> None:
        super().__init__(tau_min=tau_min, tau_max=tau_max)
        check_radius(rho)
        self.rho, self.iterations = float(rho), check_count("iterations", iterations)
        self.outcomes = None if outcomes is None else check_count("outcomes", outcomes)

    @classmethod
    def for_entropy(
        cls, entropy: float, *, outcomes: int, tau_min: float, tau_max: float, iterations: int = 40
    ) -> "OptimalTemperature":
        r"""The temperature at which the softmax of a row has a given entropy; the nearer bound if there is none.

        $H(\mathrm{softmax}(s/\tau)) = \log m - \mathrm{KL}$, so it is the optimum for $\rho = \log m - H$: a
        sampler that is equally undecided at every token, and what the robust loss of a frozen model aims at.

        Args:
            entropy: H in nats, 0 < H <= log m.
            outcomes: the number of outcomes m; rows with another are an error.
            tau_min: lower bound, > 0.
            tau_max: upper bound.
            iterations: steps of the solver.

        Raises:
            ValueError: an entropy above log m, or not above 0.

        Example:
            >>> import torch, dro_temp as dt
            >>> predictor = dt.OptimalTemperature.for_entropy(1.0, outcomes=4, tau_min=0.01, tau_max=10.0)
            >>> scores = torch.tensor([[4.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])
            >>> dt.interfaces.ScoreStatistics(scores / predictor(support=dt.Support(scores))[:, None]).entropy
            tensor([1.0000, 1.0000])
        """
        largest = math.log(check_count("outcomes", outcomes, minimum=2))
        check_real("entropy", entropy, "Pass entropy=1.0, say.")
        if not 0.0 < entropy <= largest:
            raise ValueError(
                f"expected 0 < entropy <= log {outcomes} = {largest:.4g} nats, received entropy={entropy}. "
                f"Pass a value in that range; exp(entropy) is about the number of outcomes left to choose from."
            )
        rho = largest - entropy
        return cls(rho, tau_min=tau_min, tau_max=tau_max, iterations=iterations, outcomes=outcomes)

    def raw(self, inputs: PredictorInputs) -> PerRow:
        """The solution."""
        support = inputs.support
        for size in _sizes(support):
            if self.outcomes not in (None, size):
                raise ValueError(
                    f"expected rows of {self.outcomes} outcomes, received {size}: the radius would stand "
                    f"for another entropy. Build OptimalTemperature.for_entropy(..., outcomes={size})."
                )
            if size > 0:
                instead = "Lower rho, or raise m: rows with more outcomes, such as a larger batch of pairs."
                check_feasible(self.rho, size, instead=instead)
        # KL(p||U) does not change when a constant is added to a row: scores serve as well as margins, and the
        # target's identity is not needed.
        return F.optimal_tau(
            at_least_float32(support.scores),  # a solver in bfloat16 is off by 2 %
            rho=self.rho,
            tau_min=self.tau_min,
            tau_max=self.tau_max,
            mask=support.mask,
            iterations=self.iterations,
        )

    def extra_repr(self) -> str:
        """The radius, the number of outcomes that it was chosen for, and the bounds."""
        outcomes = "" if self.outcomes is None else f"outcomes={self.outcomes}, "
        return f"rho={self.rho:.4g}, {outcomes}{super().extra_repr()}"

    def bound(self, raw: PerRow) -> PerRow:
        """Clipped against rounding; the solver stays inside."""
        return raw.clamp(self.tau_min, self.tau_max)


def _sizes(support: Support) -> tuple[int, ...]:
    """Fewest and most outcomes of a row that has some; those of all columns where the mask cannot be read."""
    if support.mask is None or not len(support.scores) or not values_can_be_read(support.mask):
        return (support.size,)
    sizes = support.mask.sum(1)
    smallest, largest = (int(x) for x in sizes.masked_fill(sizes == 0, sizes.amax()).aminmax())
    return (smallest, largest) if smallest < largest else (smallest,)
