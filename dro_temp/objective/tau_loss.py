"""A separate loss for the predictors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dro_temp._typing import PerRow, Scalar
from dro_temp.interfaces import LossOutput, RobustLoss, Rows, TemperaturePredictor
from dro_temp.objective.reduction import weighted_mean, whole_weight
from dro_temp.objective.views import evaluate_views


def evaluate_separately(
    mirrored: tuple[str, str] | None,
    rows: Mapping[str, Rows],
    predictors: nn.ModuleDict,
    losses: nn.ModuleDict,
    tau_losses: nn.ModuleDict,
) -> tuple[dict[str, LossOutput], dict[str, LossOutput]]:
    """The host's loss at detached temperatures, and the predictors' loss on detached rows.

    A predictor that reads scores runs inside the pass of its own loss, which needs no score matrix; the host's loss
    uses the temperatures of that pass.
    """
    taus: dict[str, Tensor | TemperaturePredictor] = {}
    for view, r in rows.items():
        predictor = predictors[view]
        assert isinstance(predictor, TemperaturePredictor)
        taus[view] = predictor if predictor.reads_scores else predictor.predict(r)
    detached = {view: r.detached() for view, r in rows.items()}
    tau_outputs = evaluate_views(None, detached, taus, tau_losses)
    fixed: dict[str, Tensor | TemperaturePredictor] = {}
    fixed |= {view: output.tau.detach() for view, output in tau_outputs.items()}
    return evaluate_views(mirrored, rows, fixed, losses), tau_outputs


def register_tau_grad_hook(predictor: TemperaturePredictor, rows: Rows, output: LossOutput) -> None:
    """Pass each row's dF/dtau to the predictor during backward, if it updates itself from it.

    Args:
        predictor: the predictor.
        rows: their rows.
        output: of the loss that the temperatures learn from.
    """
    values, tau = output.values, output.tau
    if not (predictor.observes_gradient and values.requires_grad and tau.requires_grad):
        return
    assert rows.index is not None
    # d(loss)/d(values): reduction, accumulation and loss scale together
    upstream: dict[str, Tensor] = {}

    def observe(gradient: Tensor) -> None:
        scale = upstream["scale"]
        counted = scale != 0
        predictor.observe(rows.index[counted], gradient[counted] / scale[counted])  # type: ignore[index]

    values.register_hook(lambda gradient: upstream.__setitem__("scale", gradient))  # type: ignore[no-untyped-call]
    tau.register_hook(observe)  # type: ignore[no-untyped-call]


def tau_loss_terms(
    rows: Mapping[str, Rows],
    tau_outputs: Mapping[str, LossOutput],
    predictors: nn.ModuleDict,
    tau_losses: nn.ModuleDict,
    count: float | Tensor | None,
    trains: bool,
) -> dict[str, Scalar]:
    """The mean of each view's `tau_loss`, over the batch's rows and those that it replays.

    Args:
        rows: the batch's, of each view.
        tau_outputs: output of each view's `tau_loss` on them.
        predictors: of each view.
        tau_losses: of each view.
        count: see `Objective.forward`.
        trains: whether other processes take part.
    """
    means = {}
    for view, output in tau_outputs.items():
        loss = tau_losses[view]
        assert isinstance(loss, RobustLoss)
        replayed = loss.replayed(predictors[view])  # type: ignore[arg-type]
        weight = _weight(rows[view], output.values.dtype)
        mean = weighted_mean(output.values, weight, count, trains)
        if replayed is not None and len(replayed.values):
            mean = _with_replayed(mean, weight, replayed.values, count, trains)
        means[view] = mean
    return means


def _weight(rows: Rows, dtype: torch.dtype) -> PerRow:
    """Weight of each row. One without outcomes in its batch may have some in a queue, and has the value 0 otherwise."""
    return rows.has_weight.to(dtype) if rows.weight is None else rows.weight.to(dtype)


def _with_replayed(
    mean: Scalar, weight: PerRow, replayed: PerRow, count: float | Tensor | None, trains: bool
) -> Scalar:
    """The mean over the batch and the replayed rows, each of weight one; with a count, this batch's part of it.

    Every process replays the same rows, and has its own part of the batch.
    """
    batch = whole_weight(weight, trains)
    share = len(replayed) / (len(replayed) + batch)
    term: Scalar = share * replayed.mean() * (1.0 if count is None else batch / count)
    return (1 - share) * mean + term
