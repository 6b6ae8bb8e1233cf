"""Losses and risks of a classifier by name: each is one line here."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dro_temp import risks
from dro_temp._checks import check_positive
from dro_temp.hosts import Timm
from dro_temp.interfaces import SampleRisk
from dro_temp.losses import KLRobustLoss, LikelihoodLoss
from dro_temp.objective import Objective
from dro_temp.predictors import ConstantTemperature, HiddenEncoder, LearnableTemperature, TempNet


def _tempnet(host: Timm, o: Mapping[str, Any]) -> TempNet:
    middle = math.sqrt(o["tau_min"] * o["tau_max"])
    start = 1.0 if o["tau_min"] < 1.0 < o["tau_max"] else middle
    return TempNet(HiddenEncoder(host.width), tau_min=o["tau_min"], tau_max=o["tau_max"], tau_init=start)


def _learnable(o: Mapping[str, Any]) -> LearnableTemperature:
    start = min(max(o["tau"], o["tau_min"]), o["tau_max"])
    return LearnableTemperature(start, tau_min=o["tau_min"], tau_max=o["tau_max"])


#: Predictor and loss, from a host and the options.
SCHEMES: Mapping[str, Callable[[Timm, Mapping[str, Any]], tuple[Any, Any]]] = {
    "cross_entropy": lambda host, o: (ConstantTemperature(o["tau"]), LikelihoodLoss()),
    "likelihood": lambda host, o: (_tempnet(host, o), LikelihoodLoss()),
    "robust": lambda host, o: (ConstantTemperature(o["tau"]), KLRobustLoss(o["rho"])),
    "robust_learnable": lambda host, o: (_learnable(o), KLRobustLoss(o["rho"])),
    "tempnet": lambda host, o: (_tempnet(host, o), KLRobustLoss(o["rho"])),
}

#: The risk over samples, from its level and the number of steps of the training; its usual level.
RISKS: Mapping[str, tuple[float, Callable[[float, int], SampleRisk | None]]] = {
    "mean": (1.0, lambda level, steps: None),
    "cvar": (0.5, lambda level, steps: risks.CVaRRisk(level)),
    "chi_square": (0.5, lambda level, steps: risks.ChiSquareRisk(level)),
    "kl": (0.5, lambda level, steps: risks.KLRisk(level)),
    "tilted": (1.0, lambda level, steps: risks.TiltedRisk(level)),
    # For wrong labels: the best case, whose radius rises so that no class is left out before it is learned.
    "optimistic": (
        0.2,
        lambda level, steps: risks.OptimisticRisk(risks.RisingRadius(risks.KLRisk(0.0), level, steps=steps)),
    ),
    "trimmed": (0.8, lambda level, steps: risks.OptimisticRisk(risks.CVaRRisk(level))),
}

if TYPE_CHECKING:
    Scheme: TypeAlias = str
    Risk: TypeAlias = str
else:
    Scheme = Literal[tuple(SCHEMES)]
    Risk = Literal[tuple(RISKS)]


def check_rho(scheme: str, rho: float, classes: int) -> None:
    """Raise where no distribution over so many classes is as far from uniform as a robust loss wants."""
    check_positive("--rho", rho)
    if scheme in ("robust", "robust_learnable", "tempnet") and rho >= math.log(classes):
        raise ValueError(
            f"expected --rho below log({classes}) = {math.log(classes):.3f}, with {classes} classes, received --rho "
            f"{rho}. Pass --rho {0.8 * math.log(classes):.2f}, say; a larger one means lower temperatures."
        )


def risk_of(name: str, level: float | None, steps: int) -> SampleRisk | None:
    """The risk of a name, at its usual level where none is given; None for the mean."""
    usual, make = RISKS[name]
    return make(usual if level is None else level, steps)


def build(host: Timm, options: Mapping[str, Any], steps: int) -> Objective:
    """The objective of these options over a host, for a training of so many steps."""
    predictor, loss = SCHEMES[options["scheme"]](host, options)
    return Objective(host, predictor, loss, risk=risk_of(options["risk"], options["risk_level"], steps))
