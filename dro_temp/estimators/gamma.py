"""Schedules of the inner learning rate gamma: pure functions of the number of steps taken."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dro_temp._checks import check_count, check_real


def _check_gamma(gamma: float) -> None:
    check_real("gamma", gamma, "Pass 0.8, or a GammaSchedule such as CosineGamma(0.2, epochs=10).")
    if not (0.0 < gamma <= 1.0):
        raise ValueError(
            f"expected gamma in (0, 1], received gamma={gamma}. Use 1.0 to forget the past (the plain minibatch), "
            "0.8 as the paper's contrastive runs do."
        )


class GammaSchedule(ABC):
    """gamma as a function of the number of steps taken."""

    @abstractmethod
    def __call__(self, steps: Tensor) -> Tensor:
        """Gamma in (0, 1] after `steps` (an int64 scalar, wherever it lives: nothing waits for a device)."""


class ConstantGamma(GammaSchedule):
    r"""$\gamma_k = \gamma$.

    Args:
        gamma: weight of the new minibatch, in (0, 1].

    Raises:
        ValueError: gamma outside (0, 1].

    Example:
        >>> ConstantGamma(0.8)(torch.tensor(3))
        tensor(0.8000, dtype=torch.float64)
    """

    def __init__(self, gamma: float) -> None:
        _check_gamma(gamma)
        self.gamma = float(gamma)

    def __call__(self, steps: Tensor) -> Tensor:
        """Gamma, whatever the step."""
        return torch.full((), self.gamma, dtype=torch.float64, device=steps.device)


class CosineGamma(GammaSchedule):
    r"""From 1 down to gamma over E epochs, then constant.

    $$\gamma_e = \gamma + \frac{1-\gamma}{2}\left(1+\cos\frac{\pi e}{E}\right)$$

    Early on the model moves fast and old estimates mislead; later they carry information.

    Args:
        gamma: final value, in (0, 1].
        epochs: length of the descent E; FastCLIP takes half of the training.
        steps_per_epoch: optimizer steps in an epoch; gamma is constant inside an epoch.

    Raises:
        ValueError: gamma outside (0, 1], or a count below 1.

    Example:
        >>> schedule = CosineGamma(0.2, epochs=10, steps_per_epoch=100)
        >>> [round(float(schedule(torch.tensor(k))), 2) for k in (0, 500, 1000, 9000)]
        [1.0, 0.6, 0.2, 0.2]

    Source: arXiv 2407.01445 (FastCLIP), section 4.
    """

    def __init__(self, gamma: float, *, epochs: int, steps_per_epoch: int = 1) -> None:
        _check_gamma(gamma)
        check_count("epochs", epochs)
        check_count("steps_per_epoch", steps_per_epoch)
        self.gamma, self.epochs, self.steps_per_epoch = float(gamma), epochs, steps_per_epoch

    def __call__(self, steps: Tensor) -> Tensor:
        """Gamma after that many steps."""
        epoch = steps.div(self.steps_per_epoch, rounding_mode="floor").clamp(max=self.epochs)
        return self.gamma + (1.0 - self.gamma) * 0.5 * (
            1.0 + (epoch.double() * (math.pi / self.epochs)).cos()
        )


def as_schedule(gamma: float | GammaSchedule) -> GammaSchedule:
    """A number is a constant schedule."""
    return gamma if isinstance(gamma, GammaSchedule) else ConstantGamma(gamma)
