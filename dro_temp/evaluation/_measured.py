"""Robust losses of sampled rows at their predicted temperatures, at their optima, and at the best constant."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp._typing import PerRow
from dro_temp.evaluation._batches import weight_of
from dro_temp.evaluation._progress import shown
from dro_temp.evaluation._tilt import Margins, Tilt
from dro_temp.interfaces import Rows

_OUTCOMES_AT_A_TIME = 2**20  # 8 MiB in float64; a few copies of it are needed
_STEPS = 100  # five are usual
_SMALL_STEP = 1e-7  # in log tau; the mean loss is flat there, and exact to rounding


@dataclass(frozen=True)
class Losses:
    """What was found of each row, float64 on the CPU.

    Args:
        weight: of each row in a mean.
        tau: predicted temperatures.
        optimum: best temperatures.
        constant: the best of the constant ones, on these rows.
        at_tau: robust loss at the predicted temperatures.
        at_optimum: at the best ones.
        at_constant: at the best constant.
        at_mean: at the mean of the predicted temperatures.
    """

    weight: PerRow
    tau: PerRow
    optimum: PerRow
    constant: float
    at_tau: PerRow
    at_optimum: PerRow
    at_constant: PerRow
    at_mean: PerRow


class Measurement:
    """Sweeps over the sampled rows, whose margins exist a block at a time.

    Args:
        view: their name, for errors.
        rows: each over its whole support.
        tau: their predicted temperatures.
        rho: radius.
        bounds: of the optima and of the constant.
        title: what a progress bar says; None for no bar.
    """

    def __init__(
        self,
        view: str,
        rows: list[Rows],
        tau: PerRow,
        rho: float,
        bounds: tuple[float, float],
        title: str | None,
    ) -> None:
        self.view = view
        self.rows, self.rho, self.bounds, self.title = rows, rho, bounds, title
        self.tau = tau.detach().cpu().double()
        self.weight = torch.cat([weight_of(r) for r in rows]).detach().cpu().double()

    def losses(self) -> Losses:
        """Of every row."""
        mean = float(self.weight @ self.tau) / float(self.weight.sum())
        found = []
        for margins, place in shown(self._blocks(), self.title, total=self._number_of_blocks()):
            best = margins.optimum(*self.bounds)
            taus = best, self.tau[place].to(best), torch.full_like(best, mean)
            found.append(torch.stack([best, *(margins.at(tau).loss for tau in taus)]).cpu().double())
        optimum, at_optimum, at_tau, at_mean = torch.cat(found, 1)
        self._check_finite(torch.stack([self.tau, optimum, at_optimum, at_tau]))
        constant, at_constant = self._best_constant(optimum)
        return Losses(self.weight, self.tau, optimum, constant, at_tau, at_optimum, at_constant, at_mean)

    def _best_constant(self, optimum: PerRow) -> tuple[float, PerRow]:
        """It lies between the lowest and the highest optimum, since every row's loss is convex; Newton in log tau."""
        low, high = math.log(float(optimum.min())), math.log(float(optimum.max()))
        x = min(max(float(self.weight @ optimum.log()) / float(self.weight.sum()), low), high)
        for _ in range(_STEPS):
            here = self._at(math.exp(x))
            excess, slope = float(self.weight @ here.excess), float(self.weight @ here.variance)
            low, high = (x, high) if excess > 0 else (low, x)
            new = x + excess / slope if slope > 0 else math.nan
            new = new if low <= new <= high else 0.5 * (low + high)
            if abs(new - x) <= _SMALL_STEP:
                break
            x = new
        return math.exp(x), here.loss

    def _at(self, tau: float) -> Tilt:
        """All rows at one temperature."""
        found = [margins.at(torch.full_like(margins.top, tau)) for margins, _ in self._blocks()]
        columns = (torch.cat([getattr(t, n) for t in found]).cpu().double() for n in Tilt.__annotations__)
        return Tilt(*columns)

    def _blocks(self) -> Iterator[tuple[Margins, slice]]:
        """Margins, and the place of their rows."""
        start = 0
        for rows in self.rows:
            step = _rows_at_a_time(rows)
            for first in range(0, len(rows), step):
                block = rows.select(slice(first, first + step))
                yield Margins(block, self.rho), slice(start, start + len(block))
                start += len(block)

    def _check_finite(self, columns: Tensor) -> None:
        bad = ~columns.isfinite().all(0)
        if bool(bad.any()):
            raise FloatingPointError(
                f"expected finite scores and temperatures in view {self.view!r}, received NaN or infinity in "
                f"{int(bad.sum())} of {len(bad)} sampled rows. Look at the inputs, or load a checkpoint from before "
                "the model diverged."
            )

    def _number_of_blocks(self) -> int:
        return sum(-(-len(rows) // _rows_at_a_time(rows)) for rows in self.rows)


def _rows_at_a_time(rows: Rows) -> int:
    return max(1, _OUTCOMES_AT_A_TIME // rows.scores.shape[1])


def weighted_mean(x: Tensor, weight: Tensor) -> float:
    """Mean over rows."""
    return float(weight @ x) / float(weight.sum())
