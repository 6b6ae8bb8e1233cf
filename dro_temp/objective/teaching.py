"""What predictors learn from where the host learns from something else: the batch's rows, and replayed ones."""

from collections.abc import Mapping

from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._typing import PerRow, Scalar
from dro_temp.interfaces import Evaluated, RobustLoss, Rows
from dro_temp.objective.reduction import weighted_mean


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
        values = found.values if replayed is None else _with(found.values, replayed.values)
        means[view] = weighted_mean(values, rows[view], count, trains)
    return means


def _with(values: PerRow, replayed: PerRow) -> PerRow:
    """Values whose mean is that of both, however it is then taken."""
    if not len(replayed):
        return values
    # Every process replays the same rows, and has its part of the batch.
    share = len(replayed) / (len(replayed) + len(values) * distributed.world_size())
    return (1 - share) * values + share * replayed.mean()
