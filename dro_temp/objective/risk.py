"""From one value per row to one number by a risk in place of the mean."""

from collections.abc import Mapping

from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._checks import check_integers
from dro_temp.interfaces import HostAdapter, Rows, SampleRisk
from dro_temp.objective.parts import PerView, per_view
from dro_temp.objective.reduction import row_weight, weighted_mean


def risks_of(risk: PerView[SampleRisk] | None, host: HostAdapter) -> nn.ModuleDict:
    """The risk of each view; empty where values are averaged."""
    return nn.ModuleDict({} if risk is None else per_view("risk", risk, host.views, SampleRisk))


def check_for_risks(
    risks: nn.ModuleDict, rows: Mapping[str, Rows], count: float | Tensor | None, group: Tensor | None
) -> None:
    """Raise on a count beside a risk, on groups that no risk reads, and on groups that are not one for each row."""
    if risks and count is not None:
        raise ValueError(
            "expected no count beside a risk, which is not a sum over rows and does not add up over the parts of an "
            "accumulation window, received both. Leave count out, and use larger batches: hosts.InChunks(host, size) "
            "holds the activations of a part of one at a time."
        )
    reading = {view: risk for view, risk in risks.items() if risk.needs_groups}
    if group is not None and not reading:
        names = ", ".join(sorted({type(risk).__name__ for risk in risks.values()})) or "no risk"
        raise ValueError(
            f"expected a risk that reads groups, received group=... and {names}. Pass "
            "Objective(..., risk=GroupRisk(num_groups)), or leave group out."
        )
    for view, risk in reading.items():
        if group is None:
            raise ValueError(
                f"expected the group of each row for the {type(risk).__name__} of view {view!r}, received none. Call "
                "objective(..., group=group), with group[i] the number of row i's group."
            )
        check_integers("group", group)
        if group.shape != rows[view].target.shape:
            raise ValueError(
                f"expected one group number for each of the {len(rows[view])} rows of view {view!r}, received shape "
                f"{list(group.shape)}. Rows are what the host makes of a batch: tokens, say, and not texts."
            )


def reduced(
    risks: nn.ModuleDict,
    values: Mapping[str, Tensor],
    rows: Mapping[str, Rows],
    *,
    count: float | Tensor | None,
    group: Tensor | None,
    trains: bool,
) -> dict[str, Tensor]:
    """One number per view: its risk, or the weighted mean of its values where there are no risks."""
    if not risks:
        return {
            view: weighted_mean(x, row_weight(rows[view], x.dtype), count, trains)
            for view, x in values.items()
        }
    found = {}
    for view, x in values.items():
        risk, r = risks[view], rows[view]
        assert isinstance(risk, SampleRisk)
        found[view] = _risk_of_all(
            risk, x, row_weight(r, x.dtype), group if risk.needs_groups else None, trains
        )
    return found


def _risk_of_all(
    risk: SampleRisk, values: Tensor, weight: Tensor, group: Tensor | None, trains: bool
) -> Tensor:
    if trains:
        # Every process takes the risk of all rows. Gradients come back summed over processes, and data parallel
        # training averages them: that is the gradient of the one risk. An evaluation waits for no other process.
        values, _ = distributed.gather_rows_with_gradient(values)
        weight, _ = distributed.gather_rows(weight)
        group = None if group is None else distributed.gather_rows(group)[0]
    result: Tensor = risk.reduced(values, weight=weight, group=group)
    return result
