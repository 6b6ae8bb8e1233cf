"""Losses of rows that were drawn from each view of an objective."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from dro_temp._checks import check_bounds, check_count, check_kind
from dro_temp.evaluation._batches import HostBatch, check_batches
from dro_temp.evaluation._gap_summary import Figures, spread
from dro_temp.evaluation._measured import Losses, Measurement, weighted_mean
from dro_temp.evaluation._row_sample import RowSample, sampled_rows
from dro_temp.evaluation._undisturbed import undisturbed
from dro_temp.evaluation.gap_report import AmortisationGap
from dro_temp.interfaces import Rows, TemperaturePredictor
from dro_temp.losses import KLRobustLoss
from dro_temp.objective import Objective

Bounds = tuple[float, float]


@dataclass(frozen=True)
class SampledLosses:
    """Losses of some rows of one view, and what they were computed with."""

    view: str
    losses: Losses
    available: int
    outcomes: int
    rho: float
    bounds: Bounds

    def gap(self, resamples: int, confidence: float, seed: int) -> AmortisationGap:
        """Means, with their bootstrap intervals."""
        found, figures = self.losses, Figures(self.losses)
        gap, recovered, rank = figures.whole()
        gap_interval, recovered_interval, rank_interval = figures.intervals(resamples, confidence, seed)
        return AmortisationGap(
            view=self.view,
            rows=len(found.tau),
            available=self.available,
            outcomes=self.outcomes,
            rho=self.rho,
            tau_min=self.bounds[0],
            tau_max=self.bounds[1],
            constant=found.constant,
            loss=weighted_mean(found.at_tau, found.weight),
            loss_optimum=weighted_mean(found.at_optimum, found.weight),
            loss_constant=weighted_mean(found.at_constant, found.weight),
            loss_same_mean=weighted_mean(found.at_mean, found.weight),
            gap=gap,
            gap_interval=gap_interval,
            recovered=recovered,
            recovered_interval=recovered_interval,
            rank_correlation=rank,
            rank_correlation_interval=rank_interval,
            tau=spread(found.tau, found.weight, self.bounds),
            optimum=spread(found.optimum, found.weight, self.bounds),
            confidence=confidence,
        )


def sampled_losses(
    objective: Objective,
    batches: Iterable[HostBatch],
    *,
    rows: int,
    seed: int,
    tau_min: float | None,
    tau_max: float | None,
    progress: bool = False,
) -> dict[str, SampledLosses]:
    """Losses of rows of each view; the arguments are those of `amortisation_gap`."""
    check_objective(objective)
    check_count("rows", rows)
    views = objective.host.views
    bounds = {view: _bounds(view, _predictor(objective, view), tau_min, tau_max) for view in views}
    samples = {view: RowSample(view, _predictor(objective, view), rows, seed) for view in views}
    with undisturbed(objective):
        check_batches("batches", batches)  # which asks a data loader for a sweep: that draws a random number
        sampled_rows(objective.host, batches, samples, "rows" if progress else None)
        return {view: _losses(objective, sample, bounds[view], progress) for view, sample in samples.items()}


def check_objective(objective: Objective) -> None:
    """Raise unless the best temperature of every row is defined."""
    check_kind(
        "objective",
        objective,
        Objective,
        "Pass the Objective itself, model.module of DistributedDataParallel, say.",
    )
    for view, loss in objective.losses.items():
        if not isinstance(loss, KLRobustLoss):
            raise TypeError(
                f"expected a KLRobustLoss in view {view!r}, whose radius rho says which temperature is the best one of "
                f"a row, received {type(loss).__name__}. Pass dt.Objective(objective.host, predictor, "
                "dt.KLRobustLoss(rho=1.0)) to measure the predictor against that loss."
            )


def _predictor(objective: Objective, view: str) -> TemperaturePredictor:
    predictor = objective.predictors[view]
    assert isinstance(predictor, TemperaturePredictor)
    return predictor


def _bounds(view: str, predictor: TemperaturePredictor, low: float | None, high: float | None) -> Bounds:
    low, high = predictor.tau_min if low is None else low, predictor.tau_max if high is None else high
    if low == high == predictor.tau_min:
        raise ValueError(
            f"expected bounds to look for better temperatures in, received a {type(predictor).__name__} at {low} in "
            f"view {view!r}, which has none. Pass tau_min=0.01, tau_max=1.0, or those of the predictor that it is "
            "compared with."
        )
    check_bounds(low, high)
    return low, high


def _losses(objective: Objective, sample: RowSample, bounds: Bounds, progress: bool) -> SampledLosses:
    rows, tau = sample.drawn()
    loss = objective.losses[sample.view]
    assert isinstance(loss, KLRobustLoss)
    outcomes = min(r.support_size for r in rows)
    _check_radius(sample.view, rows[0], loss.rho, outcomes)
    title = f"best temperatures, {sample.view}" if progress else None
    losses = Measurement(sample.view, rows, tau, loss.rho, _as_float32(bounds), title).losses()
    return SampledLosses(sample.view, losses, sample.available, outcomes, loss.rho, bounds)


def _as_float32(bounds: Bounds) -> Bounds:
    """A little wider where float32 rounds them so: what a predictor has at its bound is not outside."""
    low, high = torch.tensor(bounds).tolist()
    return min(low, bounds[0]), max(high, bounds[1])


def _check_radius(view: str, rows: Rows, rho: float, outcomes: int) -> None:
    if outcomes > 0 and (rho == 0 or rho < math.log(outcomes)):
        return
    more = "" if rows.target_in_support else "more data, all that the loss was trained on, or "
    raise ValueError(
        f"expected rho < log m in view {view!r}, received rho={rho} and m={outcomes} outcomes in a row's support, "
        f"log m = {math.log(max(outcomes, 1)):.4g}: every temperature would collapse to tau_min. Pass {more}a smaller "
        "rho."
    )
