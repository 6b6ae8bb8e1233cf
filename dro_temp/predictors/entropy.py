"""Decoding rules that map the entropy of a row to its temperature; nothing is trained."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from dro_temp._checks import check_bounds, check_inside, check_kind, check_positive, check_within
from dro_temp._typing import PerRow
from dro_temp.interfaces import PredictorInputs, TemperaturePredictor


class EntropyRule(ABC):
    """A temperature as a function of the entropy of softmax(scores) at temperature 1."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """(tau_min, tau_max) of all temperatures."""

    @abstractmethod
    def __call__(self, entropy: PerRow, log_outcomes: PerRow) -> PerRow:
        """Temperatures; they are clipped to the bounds.

        Args:
            entropy: H of each row, in nats, between 0 and `log_outcomes`.
            log_outcomes: log of the number of each row's outcomes that can happen, the largest possible entropy.
        """


@dataclass(frozen=True)
class EdtRule(EntropyRule):
    r"""$\tau = \tau_0\, b^{\theta / H}$: an uncertain row gets almost $\tau_0$, a certain one is taken greedily.

    Args:
        tau0: temperature of a row of infinite entropy, and the upper bound.
        theta: how much certainty cools, >= 0; 0 gives tau0 to all rows.
        base: b, in (0, 1).
        tau_min: lower bound, > 0: the rule itself goes to 0 with the entropy.

    Raises:
        ValueError: a number outside its range.

    Example:
        >>> import torch, dro_temp as dt
        >>> predictor = dt.EntropyTemperature(dt.predictors.EdtRule(tau0=1.0, theta=0.5))
        >>> predictor(support=dt.Support(torch.tensor([[0.0, 0.0], [9.0, 0.0]])))
        tensor([0.8513, 0.0100])

    Source: arXiv 2403.14541 (EDT), equation 2; b = 0.8 there.
    """

    tau0: float = 1.0
    theta: float = 0.1
    base: float = 0.8
    tau_min: float = 0.01

    def __post_init__(self) -> None:
        check_positive("tau0", self.tau0)
        check_bounds(self.tau_min, self.tau0)
        check_within("theta", self.theta, 0.0, 1e6)
        check_inside("base", self.base, 0.0, 1.0)

    @property
    def bounds(self) -> tuple[float, float]:
        """(tau_min, tau0)."""
        return self.tau_min, self.tau0

    def __call__(self, entropy: PerRow, log_outcomes: PerRow) -> PerRow:
        """The rule; 0 for a row without entropy, unless theta is 0."""
        certainty = self.theta / entropy.clamp(min=torch.finfo(entropy.dtype).tiny)
        return self.tau0 * self.base**certainty


@dataclass(frozen=True)
class DynatempRule(EntropyRule):
    r"""$\tau = \tau_{\min} + (\tau_{\max} - \tau_{\min}) (H / \log m)^k$, m the number of outcomes that can happen.

    As in llama.cpp, where m is the number of remaining candidates: an excluded outcome (-inf, -1e4; see
    `ScoreStatistics`) does not count.

    Args:
        tau_min: temperature of a row without entropy, > 0.
        tau_max: temperature of a row that is uniform.
        exponent: k, > 0.

    Raises:
        ValueError: bounds that do not form an interval, or an exponent that is not positive.

    Example:
        >>> import torch, dro_temp as dt
        >>> predictor = dt.EntropyTemperature(dt.predictors.DynatempRule(0.5, 1.5))
        >>> predictor(support=dt.Support(torch.tensor([[0.0, 0.0], [99.0, 0.0]])))
        tensor([1.5000, 0.5000])

    Source: the dynamic temperature ("dynatemp") of llama.cpp's sampler.
    """

    tau_min: float
    tau_max: float
    exponent: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self.tau_min, self.tau_max)
        check_positive("exponent", self.exponent)

    @property
    def bounds(self) -> tuple[float, float]:
        """(tau_min, tau_max)."""
        return self.tau_min, self.tau_max

    def __call__(self, entropy: PerRow, log_outcomes: PerRow) -> PerRow:
        """The rule."""
        share = (entropy / log_outcomes.clamp(min=1e-12)).clamp(0.0, 1.0)
        return self.tau_min + (self.tau_max - self.tau_min) * share**self.exponent


class EntropyTemperature(TemperaturePredictor):
    r"""$\tau_i = r(H_i)$: a rule of the entropy of each row's own softmax at temperature 1.

    What decoders use without training: the baseline for a trained predictor. It depends on neither the target's
    probability nor a radius; for the temperature at which a row has a *given* entropy see
    `OptimalTemperature.for_entropy`.

    Args:
        rule: an `EdtRule`, a `DynatempRule`, or an `EntropyRule` of your own.

    Raises:
        TypeError: `rule` is not an EntropyRule.

    Example:
        >>> import torch, dro_temp as dt
        >>> predictor = dt.EntropyTemperature(dt.predictors.DynatempRule(0.5, 1.5, exponent=2.0))
        >>> predictor(support=dt.Support(torch.zeros(3, 100)))
        tensor([1.5000, 1.5000, 1.5000])

    Source: arXiv 2403.14541 (EDT); llama.cpp (dynatemp).
    """

    reads = frozenset({"statistics"})

    def __init__(self, rule: EntropyRule) -> None:
        check_kind("rule", rule, EntropyRule, "Pass EdtRule() or DynatempRule(tau_min, tau_max).")
        tau_min, tau_max = rule.bounds
        super().__init__(tau_min=tau_min, tau_max=tau_max)
        self.rule = rule

    def raw(self, inputs: PredictorInputs) -> PerRow:
        """The rule's temperature."""
        return self.rule(inputs.statistics.entropy, inputs.statistics.possible.clamp(min=1.0).log())

    def bound(self, raw: PerRow) -> PerRow:
        """Clipped: rules are exact inside their bounds."""
        return raw.clamp(self.tau_min, self.tau_max)

    def extra_repr(self) -> str:
        """The rule, and the bounds."""
        return f"{self.rule}, {super().extra_repr()}"
