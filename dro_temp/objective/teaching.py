"""What predictors learn from where the host learns from something else: the batch's rows, and replayed ones."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dro_temp._typing import PerRow, Scalar
from dro_temp.interfaces import Evaluated, RobustLoss, Rows
from dro_temp.objective.reduction import weighted_mean, whole_weight


def taught(
    rows: Mapping[str, Rows],
    learned: Mapping[str, Evaluated],
    predictors: nn.ModuleDict,
    tau_losses: nn.ModuleDict,
    count: float | Tensor | None,
    trains: bool,
) -> dict[str, Scalar]:
    """Of each view with a `tau_loss`: the mean of its values, over the batch's rows and those that it replays.

    Args:
        rows: the batch's.
        learned: what the `tau_loss` made of them.
        predictors: of each view.
        tau_losses: of each view.
        count: see `Objective.forward`.
        trains: whether other processes take part.
    """
    means = {}
    for view, found in learned.items():
        loss = tau_losses[view]
        assert isinstance(loss, RobustLoss)
        replayed = loss.replayed(predictors[view])  # type: ignore[arg-type]
        weight = _weight(rows[view], found.values.dtype)
        mean = weighted_mean(found.values, weight, count, trains)
        if replayed is not None and len(replayed.values):
            mean = _with(mean, weight, replayed.values, count, trains)
        means[view] = mean
    return means


def _weight(rows: Rows, dtype: torch.dtype) -> PerRow:
    """How much each row counts: one without outcomes in its batch may have some in a queue, and is zero elsewhere."""
    return rows.weighs.to(dtype) if rows.weight is None else rows.weight.to(dtype)


def _with(
    mean: Scalar, weight: PerRow, replayed: PerRow, count: float | Tensor | None, trains: bool
) -> Scalar:
    """The mean of both, each replayed row with weight one; by a count, the part of the mean that falls to this batch.

    Every process replays the same rows, and has its part of the batch.
    """
    batch = whole_weight(weight, trains)
    share = len(replayed) / (len(replayed) + batch)
    term: Scalar = share * replayed.mean() * (1.0 if count is None else batch / count)
    return (1 - share) * mean + term
