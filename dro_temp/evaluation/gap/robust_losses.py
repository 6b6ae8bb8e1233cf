"""Robust losses of sampled rows: at predicted temperatures, at the optimum of every row, at the best constant."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.evaluation._batches import weight_of, with_progress
from dro_temp.interfaces import Rows

_UNDERFLOWS = -800.0  # exp of it is 0 in float64; minus infinity times that zero would be NaN
_STEPS = 100  # ten are usual; halving alone takes 60 from any bounds to rounding
_SMALL_STEP = 1e-9  # in log tau: the loss is then at rounding

OUTCOMES_AT_A_TIME = 2**20  # 8 MiB in float64; a few copies of it are needed


# --- The loss of a row as a function of its temperature ---------------------------------------------------------


class Dual(NamedTuple):
    """Rows at one temperature each."""

    loss: PerRow  # F = tau (log mean_j exp(h_j / tau) + rho)
    excess: PerRow  # KL(p||U) - rho = -dF/dtau: positive where the temperature is below the optimum
    variance: PerRow  # Var_p(h / tau) = -dKL/dlog(tau)


class Margins:
    """Margins of some rows over their support; a temperature costs one exponential per outcome.

    `functional.optimal_tau` finds the same optimum under `torch.compile`, in a fixed number of steps; here rows that
    have converged drop out, which takes less than a tenth of its time.
    """

    def __init__(self, rows: Rows, rho: float) -> None:
        dtype = torch.float32 if rows.target.device.type == "mps" else torch.float64
        h = replace(rows, scores=rows.dense_scores.to(dtype)).margins
        if not rows.target_in_support:  # the last outcome takes the target's place
            h = h.scatter_(1, rows.target.long()[:, None], h[:, -1:].clone())[:, :-1]
        self.rho, self.log_size = rho, math.log(h.shape[1])
        self.top = h.amax(1)
        self._below: Scores = h.sub_(self.top[:, None])

    def at(self, tau: PerRow, rows: Tensor | None = None) -> Dual:
        """The rows, or some of them by their numbers, at these temperatures."""
        below, top = (self._below, self.top) if rows is None else (self._below[rows], self.top[rows])
        z = (below / tau[:, None]).clamp_(min=_UNDERFLOWS)
        p = z.exp()
        total = p.sum(1)
        mean = torch.linalg.vecdot(p, z) / total
        square = torch.linalg.vecdot(p.mul_(z), z) / total
        log_g = total.log() - self.log_size
        variance = (square - mean.square()).clamp_(min=0)
        return Dual(tau * (log_g + self.rho) + top, mean - log_g - self.rho, variance)

    def optimum(self, tau_min: float, tau_max: float) -> PerRow:
        """The temperature of each row that minimises its loss within the bounds, by safeguarded Newton in log tau."""
        floor, ceiling = (torch.full_like(self.top, bound) for bound in (tau_min, tau_max))
        too_high, too_low = self.at(floor).excess <= 0, self.at(ceiling).excess >= 0
        tau = torch.where(too_low, ceiling, floor)
        rows = (~too_low & ~too_high).nonzero()[:, 0]
        low, high = (torch.full_like(tau[rows], math.log(bound)) for bound in (tau_min, tau_max))
        # Right for normally distributed margins: KL = variance / (2 tau^2).
        spread = self._below.std(1, correction=0)[rows]
        guess = (spread / math.sqrt(2 * max(self.rho, 1e-12))).clamp(min=1e-30)
        x = guess.log().clamp(math.log(tau_min), math.log(tau_max))
        for _ in range(_STEPS):
            if len(rows) == 0:
                break
            here = self.at(x.exp(), rows)
            low, high = torch.where(here.excess > 0, x, low), torch.where(here.excess > 0, high, x)
            # A step on log KL, which is linear in log tau for normal margins; the middle where it leaves the bracket.
            kl = (here.excess + self.rho).clamp(min=1e-300)
            new = x + kl * (kl / self.rho).log() / here.variance
            inside = (new >= low) & (new <= high)  # equal where the step is rounding
            new = torch.where(inside, new, 0.5 * (low + high))
            tau[rows] = new.exp()
            going = (new - x).abs() > _SMALL_STEP
            rows, x, low, high = rows[going], new[going], low[going], high[going]
        return tau.clamp_(tau_min, tau_max)


# --- The losses of all rows -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RobustLosses:
    """Temperatures of rows and their robust losses at these, float64 on the CPU."""

    weight: PerRow
    tau: PerRow  # predicted
    optimum: PerRow
    constant: float  # the best constant on these rows
    at_tau: PerRow
    at_optimum: PerRow
    at_constant: PerRow
    at_mean: PerRow  # at the mean of the predicted temperatures

    def mean(self, x: PerRow) -> float:
        """Weighted mean over rows."""
        return float(self.weight @ x) / float(self.weight.sum())


def robust_losses(
    view: str, rows: list[Rows], tau: PerRow, rho: float, bounds: tuple[float, float], title: str | None
) -> RobustLosses:
    """Losses of batches of rows with these predicted temperatures; margins exist a block at a time."""
    tau = tau.detach().cpu().double()
    weight = torch.cat([weight_of(r) for r in rows]).detach().cpu().double()
    mean = float(weight @ tau) / float(weight.sum())
    columns = []
    for block, place in with_progress(list(_blocks(rows)), title):
        margins = Margins(block, rho)
        best = margins.optimum(*bounds)
        taus = best, tau[place].to(best), torch.full_like(best, mean)
        columns.append(torch.stack([best, *(margins.at(t).loss for t in taus)]).cpu().double())
    optimum, at_optimum, at_tau, at_mean = torch.cat(columns, 1)
    bad = ~torch.stack([tau, optimum, at_optimum, at_tau]).isfinite().all(0)
    if bool(bad.any()):
        raise FloatingPointError(
            f"expected finite scores and temperatures in view {view!r}, received NaN or infinity in {int(bad.sum())} "
            f"of {len(bad)} sampled rows. Look at the inputs, or load a checkpoint from before the model diverged."
        )
    constant, at_constant = _best_constant(rows, weight, optimum, rho)
    return RobustLosses(weight, tau, optimum, constant, at_tau, at_optimum, at_constant, at_mean)


def _best_constant(rows: list[Rows], weight: PerRow, optimum: PerRow, rho: float) -> tuple[float, PerRow]:
    """Temperature and losses; by Newton in log tau, between the lowest and the highest optimum by convexity."""
    low, high = math.log(float(optimum.min())), math.log(float(optimum.max()))
    x = min(max(float(weight @ optimum.log()) / float(weight.sum()), low), high)
    for _ in range(_STEPS):
        margins = (Margins(block, rho) for block, _ in _blocks(rows))
        duals = [m.at(torch.full_like(m.top, math.exp(x))) for m in margins]
        here = Dual(*(torch.cat(column).cpu().double() for column in zip(*duals, strict=True)))
        excess, slope = float(weight @ here.excess), float(weight @ here.variance)
        low, high = (x, high) if excess > 0 else (low, x)
        new = x + excess / slope if slope > 0 else math.nan
        new = new if low <= new <= high else 0.5 * (low + high)
        if abs(new - x) <= 1e-7:  # the mean loss is flat there, and exact to rounding
            break
        x = new
    return math.exp(x), here.loss


def _blocks(rows: list[Rows]) -> Iterator[tuple[Rows, slice]]:
    """Rows with so many outcomes at a time, and their place among all rows."""
    start = 0
    for batch in rows:
        step = max(1, OUTCOMES_AT_A_TIME // batch.scores.shape[1])
        for first in range(0, len(batch), step):
            block = batch.select(slice(first, first + step))
            yield block, slice(start, start + len(block))
            start += len(block)
