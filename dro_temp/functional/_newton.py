"""The temperature at which the tilted distribution is at a given distance, by Newton's method within a bracket."""

from collections.abc import Callable

import torch
from torch import Tensor


def log_tau_at(
    rho: float, tilt: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor, iterations: int
) -> Tensor:
    """The root of KL = rho in log tau, KL falling from `low` to `high`; the bound beside it where there is none.

    Newton, kept inside a bracket that at least halves whenever it leaves it. The number of iterations is fixed: there
    is no data-dependent control flow.

    Args:
        rho: the distance.
        tilt: KL and -dKL/dlog(tau), from tau.
        low: logarithm of the lowest temperature.
        high: of the highest.
        iterations: steps.
    """
    x = 0.5 * (low + high)
    for _ in range(iterations):
        kl, variance = tilt(x.exp())
        excess = kl - rho  # positive: tau is too small
        low = torch.where(excess > 0, x, low)
        high = torch.where(excess > 0, high, x)
        newton = x + excess / variance.clamp(min=torch.finfo(x.dtype).tiny)
        inside = (newton > low) & (newton < high)
        x = torch.where(inside, newton, 0.5 * (low + high))
    return x
