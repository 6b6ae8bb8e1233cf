"""The robust loss of rows as a function of their temperature, and its minimum."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.interfaces import Rows

_UNDERFLOWS = -800.0  # exp of it is 0 in float64; minus infinity times that zero would be NaN
_STEPS = 100  # ten are usual; halving alone takes 60 from any bounds to rounding
_SMALL_STEP = 1e-9  # in log tau: the loss is then at rounding


@dataclass(frozen=True)
class Tilt:
    r"""What there is to know of rows at one temperature each.

    Args:
        loss: $F = \tau (\log \mathrm{mean}_j e^{h_j/\tau} + \rho)$.
        excess: $\mathrm{KL}(p\|U) - \rho = -dF/d\tau$; positive where the temperature is below the best one.
        variance: $\mathrm{Var}_p(h/\tau) = -d\mathrm{KL}/d\log\tau$.
    """

    loss: PerRow
    excess: PerRow
    variance: PerRow


class Margins:
    """Margins of some rows over their support; a temperature costs one exponential an outcome.

    `functional.optimal_tau` finds the same optimum under `torch.compile`, in a fixed number of steps; here rows that
    are done drop out, which takes less than a tenth of its time.

    Args:
        rows: whose scores are computed here, in float64 where the device has it.
        rho: radius.
    """

    def __init__(self, rows: Rows, rho: float) -> None:
        dtype = torch.float32 if rows.target.device.type == "mps" else torch.float64
        h = replace(rows, scores=rows.dense_scores.to(dtype)).margins
        if not rows.target_in_support:  # the last outcome takes the target's place: support is all there is
            h = h.scatter_(1, rows.target.long()[:, None], h[:, -1:].clone())[:, :-1]
        self.rho, self.log_size = rho, math.log(h.shape[1])
        self.top = h.amax(1)
        self._below: Scores = h.sub_(self.top[:, None])

    def at(self, tau: PerRow, rows: Tensor | None = None) -> Tilt:
        """The rows, or some of them by their numbers, at these temperatures."""
        below, top = (self._below, self.top) if rows is None else (self._below[rows], self.top[rows])
        z = (below / tau[:, None]).clamp_(min=_UNDERFLOWS)
        p = z.exp()
        total = p.sum(1)
        mean = torch.linalg.vecdot(p, z) / total
        square = torch.linalg.vecdot(p.mul_(z), z) / total
        log_g = total.log() - self.log_size
        return Tilt(
            tau * (log_g + self.rho) + top, mean - log_g - self.rho, (square - mean.square()).clamp_(min=0)
        )

    def optimum(self, tau_min: float, tau_max: float) -> PerRow:
        """The temperature of each row that minimises its loss within the bounds."""
        floor, ceiling = (torch.full_like(self.top, bound) for bound in (tau_min, tau_max))
        too_high, too_low = self.at(floor).excess <= 0, self.at(ceiling).excess >= 0
        tau = torch.where(too_low, ceiling, floor)
        number = (~too_low & ~too_high).nonzero()[:, 0]
        if len(number) == 0:
            return tau
        low, high = (torch.full_like(tau[number], math.log(bound)) for bound in (tau_min, tau_max))
        x = self._guess(number).log().clamp(math.log(tau_min), math.log(tau_max))
        for _ in range(_STEPS):
            here = self.at(x.exp(), number)
            low, high = torch.where(here.excess > 0, x, low), torch.where(here.excess > 0, high, x)
            new = _newton(x, here, self.rho, low, high)
            tau[number] = new.exp()
            going = (new - x).abs() > _SMALL_STEP
            number, x, low, high = number[going], new[going], low[going], high[going]
            if len(number) == 0:
                break
        return tau.clamp_(tau_min, tau_max)

    def _guess(self, number: Tensor) -> PerRow:
        r"""Right for margins that are normally distributed: $\mathrm{KL} = \sigma^2 / (2 \tau^2)$."""
        spread = self._below[number].std(1, correction=0)
        return (spread / math.sqrt(2 * max(self.rho, 1e-12))).clamp(min=1e-30)


def _newton(x: Tensor, here: Tilt, rho: float, low: Tensor, high: Tensor) -> Tensor:
    """A step on log KL, which is straight in log tau for normal margins; the middle where it leaves the bracket."""
    kl = (here.excess + rho).clamp(min=1e-300)
    step = kl * (kl / rho).log() / here.variance
    new = x + step
    inside = (new >= low) & (new <= high)  # equal where the step is rounding
    return torch.where(inside, new, 0.5 * (low + high))
