"""Who is compared: four trials for everyone, two learning rates times two values of what matters most."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

import dro_temp as dt
from wrong_labels.data import WIDTH

BOUNDS, RATES = {"tau_min": 0.1, "tau_max": 20.0}, (1e-3, 3e-3)
#: Losses of samples [n], from logits and labels, with the arm's option.
SampleLoss = Callable[[Tensor, Tensor, float], Tensor]


def sample_entropy(logits: Tensor, labels: Tensor, _: float = 0.0) -> Tensor:
    """-log p_y."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _smoothed(logits: Tensor, labels: Tensor, _: float = 0.0) -> Tensor:
    """Cross-entropy with labels that are 0.9 of the class given and 0.1 of all alike."""
    return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def _generalised(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """(1 - p_y^q) / q, arXiv 1805.07836."""
    return -(-q * sample_entropy(logits, labels)).expm1() / q


def _focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """(1 - p_y)^gamma (-log p_y), arXiv 1708.02002."""
    entropy = sample_entropy(logits, labels)
    # The slope of a root at 0 is infinite, and infinity times an entropy of 0 is NaN.
    return (-(-entropy).expm1()).clamp(min=1e-12).pow(gamma) * entropy


def _net(_: float, samples: int) -> dt.TemperaturePredictor:
    encoder = dt.predictors.SumEncoder(
        [dt.predictors.HiddenEncoder(WIDTH), dt.predictors.StatisticsEncoder()]
    )
    return dt.TempNet(encoder, tau_init=1.0, readout=dt.predictors.ResidualReadout, **BOUNDS)


def _individual(_: float, samples: int) -> dt.TemperaturePredictor:
    return dt.IndividualTemperature(samples, tau_init=1.0, update=None, **BOUNDS)


def _best_case(rho: float, classes: int) -> dt.interfaces.SampleRisk:
    return dt.OptimisticRisk(dt.KLRisk(rho))


@dataclass(frozen=True)
class Arm:
    """A way to learn.

    Args:
        tuned: the option that is tuned beside the learning rate, and its values.
        sample_loss: of each sample, where the objective is the risk of it.
        risk: from the losses of samples to one number, by the option and the number of classes; the mean if None.
        predictor: of temperatures, where the objective is a loss of rows; by the option and the number of samples.
        loss: of rows.
        smoothing: True if the option is that of the labels.
        decay: True if the option is the weight decay.
        rising: True if the risk's radius rises from 0 to the option over the training.
        right_labels: True to train on the samples alone whose label is right: a bound, no method.
    """

    tuned: tuple[str, tuple[float, float]]
    sample_loss: SampleLoss = sample_entropy
    risk: Callable[[float, int], dt.interfaces.SampleRisk] | None = None
    predictor: Callable[[float, int], dt.TemperaturePredictor] | None = None
    loss: Callable[[float], dt.RobustLoss] = lambda _: dt.LikelihoodLoss()
    smoothing: bool = False
    decay: bool = False
    rising: bool = False
    right_labels: bool = False

    def trials(self) -> list[dict[str, float]]:
        """Options of each trial."""
        return [{"lr": lr, self.tuned[0]: value} for lr, value in itertools.product(RATES, self.tuned[1])]


BASELINE, BOUND = "label smoothing", "right labels alone"
ARMS = {
    BOUND: Arm(("decay", (0.01, 0.3)), decay=True, right_labels=True),
    "cross-entropy": Arm(("decay", (0.01, 0.3)), decay=True),
    BASELINE: Arm(
        ("smoothing", (0.1, 0.3)), predictor=lambda _, n: dt.ConstantTemperature(1.0), smoothing=True
    ),
    "generalised cross-entropy": Arm(("q", (0.5, 0.9)), _generalised),
    "focal": Arm(("gamma", (0.5, 2.0)), _focal),
    "tilted, t < 0": Arm(("tilt", (-2.0, -1.0)), risk=lambda o, m: dt.TiltedRisk(o)),
    "least losses": Arm(("share", (0.6, 0.8)), risk=lambda o, m: dt.OptimisticRisk(dt.CVaRRisk(o))),
    "best case in a KL ball": Arm(("rho", (0.2, 0.5)), risk=_best_case),
    "the same, smoothed labels": Arm(("rho", (0.2, 0.5)), _smoothed, risk=_best_case),
    "the same, rho rising": Arm(("rho", (0.2, 0.5)), _smoothed, risk=_best_case, rising=True),
    "robust, constant": Arm(
        ("tau", (1.0, 4.0)),
        predictor=lambda o, n: dt.ConstantTemperature(o),
        loss=lambda _: dt.KLRobustLoss(0.5),
    ),
    "robust, TempNet": Arm(("rho", (0.5, 1.0)), predictor=_net, loss=dt.KLRobustLoss),
    "robust, optimal": Arm(
        ("rho", (0.5, 1.0)), predictor=lambda o, n: dt.OptimalTemperature(o, **BOUNDS), loss=dt.KLRobustLoss
    ),
    "likelihood, one for each sample": Arm(("tau_lr", (0.03, 0.3)), predictor=_individual),
}
#: For classes of unlike size, where labels are right.
IMBALANCE_ARMS = {
    "tilted, t > 0": Arm(("tilt", (0.5, 2.0)), risk=lambda o, m: dt.TiltedRisk(o)),
    "worst case in a KL ball": Arm(("rho", (0.2, 0.5)), risk=lambda o, m: dt.KLRisk(o)),
    "worst class": Arm(("step_size", (0.01, 0.1)), risk=lambda o, m: dt.GroupRisk(m, step_size=o)),
}
