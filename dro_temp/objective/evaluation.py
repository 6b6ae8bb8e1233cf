"""Every view's temperatures and values; two views that share their scores are scored once."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._compiler import log_of_size, outside_graphs
from dro_temp.interfaces import (
    Choice,
    Evaluated,
    HostAdapter,
    LinearScores,
    LogMeanExpLoss,
    RobustLoss,
    Rows,
    TemperaturePredictor,
)
from dro_temp.kernels.paths import PAIR_PATHS, SIDES_PATHS, fastest_path

#: Of each view: who predicts the temperatures, or the temperatures.
Temperatures: TypeAlias = Mapping[str, TemperaturePredictor | Tensor]


def evaluate_both(
    host: HostAdapter,
    rows: Mapping[str, Rows],
    predictors: nn.ModuleDict,
    losses: nn.ModuleDict,
    tau_losses: nn.ModuleDict,
) -> tuple[dict[str, Evaluated], dict[str, Evaluated]]:
    """What the host learns from, and what the predictors learn from where that is something else."""
    named: dict[str, TemperaturePredictor] = {view: predictors[view] for view in rows}  # type: ignore[misc]
    if not tau_losses:
        return evaluate_views(host, rows, named, losses), {}
    taus = {view: predictor.of(rows[view]) for view, predictor in named.items()}
    found = evaluate_views(host, rows, {view: tau.detach() for view, tau in taus.items()}, losses)
    return found, _evaluate(rows, {view: r.detached() for view, r in rows.items()}, taus, tau_losses)


def evaluate_views(
    host: HostAdapter, rows: Mapping[str, Rows], taus: Temperatures, losses: nn.ModuleDict
) -> dict[str, Evaluated]:
    """Temperatures and values of each view's rows."""
    if host.mirrored is not None:
        together = _evaluate_mirrored(host.mirrored, rows, taus, losses)
        if together is not None:
            return {**together, **_evaluate(set(rows) - set(together), rows, taus, losses)}
    return _evaluate(rows, rows, taus, losses)


def _evaluate(
    views: object, rows: Mapping[str, Rows], taus: Temperatures, losses: nn.ModuleDict
) -> dict[str, Evaluated]:
    found = {}
    for view in rows:
        if view in views:  # type: ignore[operator]
            loss = losses[view]
            assert isinstance(loss, RobustLoss)
            found[view] = loss.evaluate_trusted(rows[view], taus[view])
    return found


def _evaluate_mirrored(
    views: tuple[str, str], rows: Mapping[str, Rows], taus: Temperatures, losses: nn.ModuleDict
) -> dict[str, Evaluated] | None:
    """Both views from one set of tiles, or None where that cannot be."""
    first, second = (rows[view].scores for view in views)
    if not (isinstance(first, LinearScores) and isinstance(second, LinearScores)):
        return None
    if any(rows[view].weight is not None or rows[view].support_size == 0 for view in views):
        return None
    ours = [losses[view] for view in views]
    if not all(isinstance(loss, LogMeanExpLoss) and loss.impl != "eager" for loss in ours):
        return None
    for tau in (taus[view] for view in views):  # no assignment in an expression: torch 2.11 cannot trace one
        if isinstance(tau, TemperaturePredictor) and tau.reads_scores:
            return None
    if first.is_share_of_transpose_of(second):
        # Not by the number of rows: that differs from process to process, and all must go the same way.
        choices = [_exchanging(loss, first) for loss in ours]
    elif first.is_transpose_of(second):
        choices = [loss.choose(rows[view]) for loss, view in zip(ours, views, strict=True)]  # type: ignore[operator]
    else:
        return None
    if choices[0].impl == "eager" or choices[0].impl != choices[1].impl:
        return None
    found: dict[str, Evaluated] = _from_tiles(views, rows, taus, losses, choices)
    return found


def _exchanging(loss: nn.Module, scores: LinearScores) -> Choice:
    assert isinstance(loss, LogMeanExpLoss)
    path = fastest_path(scores.queries, scores.keys) if loss.impl == "auto" else loss.impl
    return Choice(path, "several processes exchange numbers per row in place of gradients")


@outside_graphs
def _from_tiles(
    views: tuple[str, str],
    rows: Mapping[str, Rows],
    given: Temperatures,
    losses: nn.ModuleDict,
    choices: list[Choice],
) -> dict[str, Evaluated]:
    with torch.autocast(rows[views[0]].target.device.type, enabled=False):
        taus = [tau if isinstance(tau := given[view], Tensor) else tau.of(rows[view]) for view in views]
        found = {}
        log_sums = _log_sums(rows[views[0]], rows[views[1]], taus, choices[0])
        for view, tau, log_sum, choice in zip(views, taus, log_sums, choices, strict=True):
            log_g = log_sum - log_of_size(rows[view].support_size, log_sum)
            values = losses[view].of_log_mean_exp(rows[view], log_g, tau.to(log_g.dtype))  # type: ignore[operator]
            found[view] = Evaluated(values, tau, choice)
        return found


def _log_sums(first: Rows, second: Rows, taus: list[Tensor], choice: Choice) -> tuple[Tensor, Tensor]:
    """Of the rows of both views."""
    assert isinstance(first.scores, LinearScores)
    assert isinstance(second.scores, LinearScores)
    x, y = first.scores.queries, second.scores.queries
    if first.scores.local_keys is None:
        sums = PAIR_PATHS[choice.impl](x, y, *taus)
        return sums.rows, sums.columns
    offset = int(first.target[0]) if len(first) else 0
    return SIDES_PATHS[choice.impl](
        (x, y),
        (second.scores.keys, first.scores.keys),
        taus,
        offset=offset,
        gather=lambda rows: distributed.gather_rows(rows)[0],
    )
