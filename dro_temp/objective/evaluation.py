"""Every view's temperatures and values; two views that share their scores are scored once."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dro_temp._compiler import outside_graphs
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
from dro_temp.kernels.paths import PAIR_PATHS


def evaluate_views(
    host: HostAdapter, rows: Mapping[str, Rows], predictors: nn.ModuleDict, losses: nn.ModuleDict
) -> dict[str, Evaluated]:
    """Temperatures and values of each view's rows."""
    if host.mirrored is not None:
        together = _evaluate_mirrored(host.mirrored, rows, predictors, losses)
        if together is not None:
            return {**together, **_evaluate(set(rows) - set(together), rows, predictors, losses)}
    return _evaluate(rows, rows, predictors, losses)


def _evaluate(
    views: object, rows: Mapping[str, Rows], predictors: nn.ModuleDict, losses: nn.ModuleDict
) -> dict[str, Evaluated]:
    found = {}
    for view in rows:
        if view in views:  # type: ignore[operator]
            loss, predictor = losses[view], predictors[view]
            assert isinstance(loss, RobustLoss)
            assert isinstance(predictor, TemperaturePredictor)
            found[view] = loss.evaluate(rows[view], predictor)
    return found


def _evaluate_mirrored(
    views: tuple[str, str], rows: Mapping[str, Rows], predictors: nn.ModuleDict, losses: nn.ModuleDict
) -> dict[str, Evaluated] | None:
    """Both views from one set of tiles, or None where that cannot be."""
    first, second = (rows[view].scores for view in views)
    if not (isinstance(first, LinearScores) and isinstance(second, LinearScores)):
        return None
    if not first.is_transpose_of(second) or any(rows[view].weight is not None for view in views):
        return None
    ours = [losses[view] for view in views]
    if not all(isinstance(loss, LogMeanExpLoss) for loss in ours):
        return None
    if any(predictors[view].reads_scores for view in views):
        return None
    choices = [loss.choose(rows[view]) for loss, view in zip(ours, views, strict=True)]  # type: ignore[operator]
    if choices[0].impl == "eager" or choices[0].impl != choices[1].impl:
        return None
    found: dict[str, Evaluated] = _from_tiles(views, first, rows, predictors, losses, choices)
    return found


@outside_graphs
def _from_tiles(
    views: tuple[str, str],
    scores: LinearScores,
    rows: Mapping[str, Rows],
    predictors: nn.ModuleDict,
    losses: nn.ModuleDict,
    choices: list[Choice],
) -> dict[str, Evaluated]:
    with torch.autocast(scores.queries.device.type, enabled=False):
        taus: list[Tensor] = [predictors[view].of(rows[view]) for view in views]  # type: ignore[operator]
        sums = PAIR_PATHS[choices[0].impl](scores.queries, scores.keys, *taus)
        found = {}
        for view, tau, log_sum, choice in zip(views, taus, (sums.rows, sums.columns), choices, strict=True):
            log_g = log_sum - math.log(rows[view].support_size)
            values = losses[view].of_log_mean_exp(rows[view], log_g, tau.to(log_g.dtype))  # type: ignore[operator]
            found[view] = Evaluated(values, tau, choice)
        return found
