"""Methods that are compared; each has four trials: two learning rates, two values of its most important option."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

import dro_temp as dt
from benchmarks.studies.common.runs import grid
from benchmarks.studies.wrong_labels.data import WIDTH

BOUNDS, RATES = {"tau_min": 0.1, "tau_max": 20.0}, (1e-3, 3e-3)
#: Losses of samples [n], from logits and labels, with the method's option.
SampleLoss = Callable[[Tensor, Tensor, float], Tensor]


def sample_entropy(logits: Tensor, labels: Tensor, _: float = 0.0) -> Tensor:
    """-log p_y."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _smoothed(logits: Tensor, labels: Tensor, _: float = 0.0) -> Tensor:
    """Cross-entropy with labels smoothed by 0.1."""
    return nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def _generalised(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """(1 - p_y^q) / q, arXiv 1805.07836."""
    return -(-q * sample_entropy(logits, labels)).expm1() / q


def _focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """(1 - p_y)^gamma (-log p_y), arXiv 1708.02002."""
    entropy = sample_entropy(logits, labels)
    # A root has an infinite derivative at 0, which times an entropy of 0 is NaN.
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
class Method:
    """A way to train.

    Either `sample_loss` and `risk` define the objective, or `predictor` and `loss` do.

    Args:
        tuned: the option that is tuned beside the learning rate, and its values.
        sample_loss: loss of each sample.
        risk: reduces losses of samples to one number, given the option and the number of classes; None for the mean.
        predictor: of temperatures, given the option and the number of samples.
        loss: of rows, given the option.
        smoothing: True if the option is the label smoothing.
        decay: True if the option is the weight decay.
        rising: True if the risk's radius rises from 0 to the option during training.
        right_labels: True to train only on samples whose label is right: an upper bound, unavailable in practice.
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
        return grid(lr=RATES, **{self.tuned[0]: self.tuned[1]})


BASELINE, BOUND = "label smoothing", "right labels alone"
METHODS = {
    BOUND: Method(("decay", (0.01, 0.3)), decay=True, right_labels=True),
    "cross-entropy": Method(("decay", (0.01, 0.3)), decay=True),
    BASELINE: Method(
        ("smoothing", (0.1, 0.3)), predictor=lambda _, n: dt.ConstantTemperature(1.0), smoothing=True
    ),
    "generalised cross-entropy": Method(("q", (0.5, 0.9)), _generalised),
    "focal": Method(("gamma", (0.5, 2.0)), _focal),
    "tilted, t < 0": Method(("tilt", (-2.0, -1.0)), risk=lambda o, m: dt.TiltedRisk(o)),
    "least losses": Method(("share", (0.6, 0.8)), risk=lambda o, m: dt.OptimisticRisk(dt.CVaRRisk(o))),
    "best case in a KL ball": Method(("rho", (0.2, 0.5)), risk=_best_case),
    "the same, smoothed labels": Method(("rho", (0.2, 0.5)), _smoothed, risk=_best_case),
    "the same, rho rising": Method(("rho", (0.2, 0.5)), _smoothed, risk=_best_case, rising=True),
    "robust, constant": Method(
        ("tau", (1.0, 4.0)),
        predictor=lambda o, n: dt.ConstantTemperature(o),
        loss=lambda _: dt.KLRobustLoss(0.5),
    ),
    "robust, TempNet": Method(("rho", (0.5, 1.0)), predictor=_net, loss=dt.KLRobustLoss),
    "robust, optimal": Method(
        ("rho", (0.5, 1.0)), predictor=lambda o, n: dt.OptimalTemperature(o, **BOUNDS), loss=dt.KLRobustLoss
    ),
    "likelihood, one for each sample": Method(("tau_lr", (0.03, 0.3)), predictor=_individual),
}
#: Also compared where classes are imbalanced and labels are right.
IMBALANCE_METHODS = {
    "tilted, t > 0": Method(("tilt", (0.5, 2.0)), risk=lambda o, m: dt.TiltedRisk(o)),
    "worst case in a KL ball": Method(("rho", (0.2, 0.5)), risk=lambda o, m: dt.KLRisk(o)),
    "worst class": Method(("step_size", (0.01, 0.1)), risk=lambda o, m: dt.GroupRisk(m, step_size=o)),
}
