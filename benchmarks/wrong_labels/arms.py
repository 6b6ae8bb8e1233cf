"""Who is compared: four trials for everyone, two learning rates times two values of what matters most."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dro_temp as dt

WIDTH, TRAIN = 64, 900
BOUNDS, RATES = {"tau_min": 0.1, "tau_max": 20.0}, (1e-3, 3e-3)
#: Losses of samples [n], from logits and labels, with the arm's option.
SampleLoss = Callable[[Tensor, Tensor, float], Tensor]


def sample_entropy(logits: Tensor, labels: Tensor, _: float = 0.0) -> Tensor:
    """-log p_y."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _generalised(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """(1 - p_y^q) / q, arXiv 1805.07836."""
    return -torch.expm1(-q * sample_entropy(logits, labels)) / q


def _focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """(1 - p_y)^gamma (-log p_y), arXiv 1708.02002."""
    entropy = sample_entropy(logits, labels)
    return (-torch.expm1(-entropy)).pow(gamma) * entropy


def _net(option: float) -> dt.TemperaturePredictor:
    encoder = dt.SeveralEncoder([dt.HiddenEncoder(WIDTH), dt.StatisticsEncoder()])
    return dt.TempNet(encoder, tau_init=1.0, readout=dt.ResidualReadout, **BOUNDS)


@dataclass(frozen=True)
class Arm:
    """A way to learn.

    Args:
        tuned: the option that is tuned beside the learning rate, and its values.
        sample_loss: of each sample, where the objective is the risk of it.
        risk: from the losses of samples to one number; the mean if None.
        predictor: of temperatures, where the objective is a loss of rows.
        loss: of rows.
        smoothing: True if the option is that of the labels.
        decay: True if the option is the weight decay.
    """

    tuned: tuple[str, tuple[float, float]]
    sample_loss: SampleLoss = sample_entropy
    risk: Callable[[float], dt.SampleRisk] | None = None
    predictor: Callable[[float], dt.TemperaturePredictor] | None = None
    loss: Callable[[float], dt.RobustLoss] = lambda _: dt.LikelihoodLoss()
    smoothing: bool = False
    decay: bool = False

    def trials(self) -> list[dict[str, float]]:
        """Options of each trial."""
        return [{"lr": lr, self.tuned[0]: value} for lr, value in itertools.product(RATES, self.tuned[1])]


def one(_: float) -> dt.TemperaturePredictor:
    """Temperature 1, whatever the option."""
    return dt.ConstantTemperature(1.0)


ARMS = {
    "cross-entropy": Arm(("decay", (0.01, 0.3)), decay=True),
    "label smoothing": Arm(("smoothing", (0.1, 0.3)), predictor=one, smoothing=True),
    "generalised cross-entropy": Arm(("q", (0.5, 0.9)), _generalised),
    "focal": Arm(("gamma", (0.5, 2.0)), _focal),
    "tilted, t < 0": Arm(("tilt", (-2.0, -1.0)), risk=dt.TiltedRisk),
    "least losses": Arm(("share", (0.6, 0.8)), risk=lambda o: dt.OptimisticRisk(dt.CVaRRisk(o))),
    "best case in a KL ball": Arm(("rho", (0.2, 0.5)), risk=lambda o: dt.OptimisticRisk(dt.KLRisk(o))),
    "robust, constant": Arm(
        ("tau", (1.0, 4.0)), predictor=dt.ConstantTemperature, loss=lambda _: dt.KLRobustLoss(0.5)
    ),
    "robust, TempNet": Arm(("rho", (0.5, 1.0)), predictor=_net, loss=dt.KLRobustLoss),
    "robust, optimal": Arm(
        ("rho", (0.5, 1.0)), predictor=lambda o: dt.OptimalTemperature(o, **BOUNDS), loss=dt.KLRobustLoss
    ),
    "likelihood, one for each sample": Arm(
        ("tau_lr", (0.03, 0.3)),
        predictor=lambda _: dt.IndividualTemperature(TRAIN, tau_init=1.0, update=None, **BOUNDS),
    ),
}
