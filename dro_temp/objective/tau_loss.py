"""A separate loss for the predictors."""

from collections.abc import Mapping

from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._typing import Scalar
from dro_temp.interfaces import LossOutput, Rows, TemperaturePredictor
from dro_temp.objective.reduction import weighted_mean
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
    """Pass each row's dF/dtau to a predictor that updates itself from it, during backward."""
    values, tau = output.values, output.tau
    if not (values.requires_grad and tau.requires_grad):
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
    """The mean of each view's `tau_loss`, over the batch's rows and those that it replays."""
    means: dict[str, Scalar] = {}
    for view, output in tau_outputs.items():
        r, values = rows[view], output.values
        # A row without outcomes in its batch may have some in a queue, and has the value 0 otherwise.
        weight = (r.has_weight if r.weight is None else r.weight).to(values.dtype)
        means[view] = weighted_mean(values, weight, count, trains)
        replayed = tau_losses[view].replayed(predictors[view])  # type: ignore[operator]
        if replayed is not None and len(replayed.values):
            # Replayed rows have weight one. Every process replays the same, and has its own part of the batch.
            batch = distributed.sum_over_processes(weight.sum()) if trains else weight.sum()
            share = len(replayed.values) / (len(replayed.values) + batch)
            term = share * replayed.values.mean() * (1.0 if count is None else batch / count)
            means[view] = (1 - share) * means[view] + term
    return means
