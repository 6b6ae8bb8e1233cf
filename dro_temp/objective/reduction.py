"""From one value per row to one number per view, by a weighted mean or a risk; and the metrics."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp import _faults, distributed
from dro_temp._checks import check_integers, check_positive, values_can_be_read
from dro_temp.interfaces import HostAdapter, LossOutput, Rows, SampleRisk
from dro_temp.kernels.dispatch import replaces_operations, row_numbers
from dro_temp.objective.views import PerView, per_view
from dro_temp.state import Committable, staged_modules

#: Where a risk stands that takes the rows of all views.
ALL_VIEWS = "all"

# Numbers that are copied rather than reduced, where that saves launches.
_LARGE = 2**21


def counted_rows(rows: Rows) -> Tensor | None:
    """`rows.valid`; None where it is known without it that there are rows, and that all of them count."""
    # A pair alone in its batch has an empty support.
    # With groups any may have one.
    known = rows.weight is None and rows.group is None and rows.target.shape[0] > 0 and rows.support_size > 0
    return None if known else rows.valid


def refuse_non_finite(
    rows: Mapping[str, Rows], outputs: Mapping[str, LossOutput], valid: Mapping[str, Tensor | None]
) -> None:
    """Raise at the first NaN or infinity, with the numbers of its rows; `valid` is None where all rows count."""
    if torch.compiler.is_compiling():
        return
    numbers: dict[tuple[str, str], Tensor] = {}
    for view, r in rows.items():
        if r.features is not None:
            numbers["features", view] = r.features.detach()
        numbers["temperatures", view] = outputs[view].tau.detach()
        numbers["loss", view] = outputs[view].values.detach()
    index = {view: r.index for view, r in rows.items()}
    if not (next(iter(rows.values())).target.is_cuda or _faults.everywhere):
        bad = _bad_rows(numbers, valid)
        if bool(torch.cat(list(bad.values())).any()):
            raise _non_finite(bad, index)
        return
    if replaces_operations(*numbers.values(), *(x for x in valid.values() if x is not None)):
        _refuse_by_kernel(rows, numbers, valid, index)
        return
    # As few launches as will do: 0 times NaN or infinity is NaN, and so is its sum. Large tensors are not kept until
    # the answer is known; where their rows are, is.
    numbers |= {name: _infinite(x) for name, x in numbers.items() if x.dim() == 2 and x.numel() > _LARGE}
    uncounted = {view: None if counted is None else ~counted for view, counted in valid.items()}
    parts = []
    for (_, view), x in numbers.items():
        dropped = uncounted[view]
        parts.append((x if dropped is None else _without(x, dropped)).flatten())
    total = torch.cat([x if x.dtype in (torch.float32, torch.float64) else x.float() for x in parts])
    _faults.check(
        (total * 0.0).sum(), lambda x: None if x == 0.0 else _non_finite(_bad_rows(numbers, valid), index)
    )


def _refuse_by_kernel(
    rows: Mapping[str, Rows],
    numbers: Mapping[tuple[str, str], Tensor],
    valid: Mapping[str, Tensor | None],
    index: Mapping[str, Tensor | None],
) -> None:
    """One launch a view, whose bits per row are all that is kept until the answer is known."""
    kernels = row_numbers()
    parts = {view: kernels.parts_of(len(r.target)) for view, r in rows.items()}
    device = next(iter(numbers.values())).device
    found = torch.empty(sum(parts.values()), dtype=torch.int32, device=device)
    bits = {}
    for (view, counted), part in zip(valid.items(), torch.split(found, list(parts.values())), strict=True):
        inputs = numbers.get(("features", view)), numbers["temperatures", view], numbers["loss", view]
        bits[view] = kernels.not_finite(*inputs, counted, part)

    def error(of_parts: list[int]) -> FloatingPointError | None:
        if not any(of_parts):
            return None
        places = {"features": 1, "temperatures": 2, "loss": 4}
        return _non_finite({name: bits[name[1]] & places[name[0]] != 0 for name in numbers}, index)

    _faults.check(found, error)


def _infinite(x: Tensor) -> Tensor:
    """NaN for rows that hold NaN or infinity, else 0."""
    low, high = torch.aminmax(x, dim=1)
    return (low.float() * 0.0) + (high.float() * 0.0)


def _without(x: Tensor, dropped: Tensor) -> Tensor:
    return x.masked_fill(dropped.view(-1, *[1] * (x.dim() - 1)), 0.0)


def _bad_rows(
    numbers: Mapping[tuple[str, str], Tensor], valid: Mapping[str, Tensor | None]
) -> dict[tuple[str, str], Tensor]:
    """Rows with NaN or infinity among some numbers."""
    bad = {}
    for (what, view), x in numbers.items():
        # They appear in the extremes, which take a thirtieth of the time.
        finite = x.amax(1).isfinite() & x.amin(1).isfinite() if x.dim() == 2 else x.isfinite()
        counted = valid[view]
        bad[what, view] = ~finite if what == "loss" or counted is None else ~finite & counted
    return bad


def _non_finite(
    bad: Mapping[tuple[str, str], Tensor], index: Mapping[str, Tensor | None]
) -> FloatingPointError:
    """The error for the first of some rows that hold NaN or infinity."""
    what, view = next((name for name, mask in bad.items() if bool(mask.any())), ("numbers", ""))
    if not view:
        return FloatingPointError(
            "expected finite features, temperatures and losses, received NaN or infinity in a row that does not count, "
            "or numbers beyond float32. Look at the inputs, or pass check_finite=False."
        )
    mask, numbers = bad[what, view], index[view]
    positions = mask.nonzero()[:, 0].tolist()
    samples = "" if numbers is None else f" (samples {numbers[mask].tolist()[:8]})"
    return FloatingPointError(
        f"expected finite {what} in view {view!r}, received NaN or infinity in rows {positions[:8]}{samples}. Look at "
        "those inputs; lower the learning rate or clip gradients if the model diverged; pass check_finite=False if a "
        "gradient scaler is to handle overflow."
    )


def checked_count(count: float | Tensor) -> float | Tensor:
    """The divisor of sums, or raise unless it is one number > 0."""
    if not isinstance(count, Tensor):
        check_positive("count", count)
        return count
    if count.numel() != 1 or count.is_complex() or count.dtype == torch.bool:
        raise ValueError(
            f"expected count as one number, received {count.dtype} of shape {list(count.shape)}. Pass count.sum(), the "
            "number of rows in the whole window."
        )
    if values_can_be_read(count):
        check_positive("count", count.item())
    return count.reshape(())


def weighted_mean(
    values: Tensor,
    weight: Tensor | None,
    count: float | Tensor | None,
    trains: bool,
    mean: Tensor | None = None,
) -> Tensor:
    """Weighted mean over rows, of all processes in training; or the weighted sum over `count`.

    A weight of None is one for each row. `mean` is that of this process, if it is known; gradients then flow through it
    instead of through the values.
    """
    # An evaluation may run on one process only, which must not wait for the others.
    processes = distributed.world_size() if trains else 1
    if mean is not None and processes == 1 and count is None:
        return mean
    if weight is None:
        if processes == 1 and count is None:
            return values.mean()  # one launch in place of six, and two less in backward
        weight = torch.ones_like(values)
    total_weight = weight.sum()
    if mean is not None:
        total = mean * total_weight
    elif (values.is_cuda or _faults.everywhere) and values.dtype == weight.dtype:
        total = values.dot(weight)  # one launch
    else:
        total = (values * weight).sum()
    if processes > 1:
        # Data parallel training averages gradients over processes; undo it, for processes of unequal weight.
        total = total * processes
        total_weight = distributed.sum_over_processes(total_weight) if count is None else total_weight
    if count is not None:
        return total / count
    return total / total_weight.clamp(min=torch.finfo(values.dtype).tiny)


def tau_loss_terms(
    rows: Mapping[str, Rows],
    tau_outputs: Mapping[str, LossOutput],
    predictors: nn.ModuleDict,
    tau_losses: nn.ModuleDict,
    count: float | Tensor | None,
    trains: bool,
) -> dict[str, Tensor]:
    """The mean of each view's `tau_loss`, over the batch's rows and those that it replays."""
    means: dict[str, Tensor] = {}
    for view, output in tau_outputs.items():
        r, values = rows[view], output.values
        # A row without outcomes in its batch may have some in a queue, and has the value 0 otherwise.
        weight = (r.has_weight if r.weight is None else r.weight).to(values.dtype)
        means[view] = weighted_mean(values, weight, count, trains)
        replayed = tau_losses[view].replayed(predictors[view])  # type: ignore[operator]
        if replayed is not None and len(replayed.values):
            # Replayed rows have weight one. Every process replays the same, and has its own part of the batch.
            batch = distributed.sum_over_processes(weight.sum()) if trains else weight.sum()
            if replayed.weight is None:
                number: float | Tensor = len(replayed.values)
                mean = replayed.values.mean()
            else:
                counted = replayed.weight.sum().to(values.dtype)
                number, mean = counted, (replayed.values * replayed.weight).sum() / counted.clamp(min=1.0)
            share = number / (number + batch)
            term = share * mean * (1.0 if count is None else batch / count)
            means[view] = (1 - share) * means[view] + term
    return means


@torch.no_grad()
def temperature_metrics(view: str, loss: Tensor, tau: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
    """Metrics of a view: its loss, and the distribution of its temperatures; `valid` is None where all rows count."""
    metrics = {"loss": loss.detach()}
    if (
        len(tau)
        and (tau.is_cuda or _faults.everywhere)
        and replaces_operations(tau, *(() if valid is None else (valid,)))
    ):
        names = ("tau_mean", "tau_std", "tau_min", "tau_max")
        metrics |= dict(zip(names, row_numbers().spread(tau, valid).unbind(0), strict=True))
    elif len(tau) and valid is None:
        std, mean = torch.std_mean(tau, correction=0)
        low, high = tau.aminmax()
        metrics |= {"tau_mean": mean, "tau_std": std, "tau_min": low, "tau_max": high}
    elif len(tau) and valid is not None:
        # With their mean in place of the rows that do not count, the rest is as if all did: not tau[valid], whose shape
        # would wait for the device, nor a mask for each number.
        count = valid.sum().clamp(min=1)
        mean = tau.masked_fill(~valid, 0.0).sum() / count
        filled = torch.where(valid, tau, mean)
        low, high = filled.aminmax()
        std = filled.std(correction=0) * (len(tau) / count).sqrt()
        metrics |= {"tau_mean": mean, "tau_std": std, "tau_min": low, "tau_max": high}
    return {f"{view}/{name}": value for name, value in metrics.items()}


def risks_of(risk: PerView[SampleRisk] | None, host: HostAdapter) -> nn.ModuleDict:
    """The risk of each view, or of all; empty where values are averaged."""
    if isinstance(risk, SampleRisk) and risk.needs_index:
        risks = nn.ModuleDict({ALL_VIEWS: risk})
    else:
        risks = nn.ModuleDict() if risk is None else per_view("risk", risk, host.views, SampleRisk)
    for r in risks.values():
        if staged_modules(r.modules()) and not isinstance(r, Committable):
            raise TypeError(
                f"expected a risk with memory to derive from StandaloneRisk, received {type(r).__name__}, whose "
                "`weights` would change what it remembers. Write class "
                f"{type(r).__name__}(dro_temp.risks.StandaloneRisk)."
            )
    return risks


def _views_of(name: str, rows: Mapping[str, Rows]) -> list[str]:
    """The views whose rows a risk takes, by its name among the risks."""
    return list(rows) if name == ALL_VIEWS and name not in rows else [name]


def check_for_risks(
    risks: nn.ModuleDict,
    rows: Mapping[str, Rows],
    count: float | Tensor | None,
    group: Tensor | None,
    trains: bool,
) -> None:
    """Raise on a count beside a risk, and on groups or sample numbers that do not fit the risks and rows."""
    if risks and count is not None:
        raise ValueError(
            "expected no count beside a risk, which is not a sum over rows and does not add up over the parts of an "
            "accumulation window, received both. Leave count out, and use larger batches: hosts.InChunks(host, size) "
            "holds the activations of a part of one at a time."
        )
    readers = {
        view: risk for name, risk in risks.items() if risk.needs_groups for view in _views_of(name, rows)
    }
    if group is not None and not readers:
        names = ", ".join(sorted({type(risk).__name__ for risk in risks.values()})) or "no risk"
        raise ValueError(
            f"expected a risk that reads groups, received group=... and {names}. Pass "
            "Objective(..., risk=GroupRisk(num_groups)), or leave group out. Groups of false negatives are for hosts "
            "of pairs, such as TwoTower."
        )
    for view, risk in readers.items():
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
    for name, risk in risks.items():
        if risk.needs_index and trains:
            for view in _views_of(name, rows):
                index = rows[view].index
                index = None if index is None else index.masked_fill(~rows[view].valid, 0)
                risk.check_index(index)  # type: ignore[operator]


def view_means(
    risks: nn.ModuleDict,
    rows: Mapping[str, Rows],
    outputs: Mapping[str, LossOutput],
    valid: Mapping[str, Tensor | None],
    count: float | Tensor | None,
    group: Tensor | None,
    trains: bool,
) -> dict[str, Tensor]:
    """One number per view: its risk, or the weighted mean of its values where there are no risks."""
    means: dict[str, Tensor] = {}
    weights: dict[str, Tensor | None] = {}
    for view, output in outputs.items():
        values, weight = output.values, rows[view].weight
        counted = valid[view]
        r = rows[view]
        if counted is not None and (weight is None or r.group is not None or r.support_size == 0):
            weight = counted if weight is None else weight * counted
        weights[view] = weight = None if weight is None else weight.to(values.dtype)
        if not risks:
            means[view] = weighted_mean(values, weight, count, trains, output.mean)
    for name, risk in risks.items():
        views = _views_of(name, rows)
        value = _risk_of([(rows[v], outputs[v].values, weights[v]) for v in views], risk, group, trains)
        means |= dict.fromkeys(views, value)
    return means


def _risk_of(
    parts: list[tuple[Rows, Tensor, Tensor | None]], risk: Any, group: Tensor | None, trains: bool
) -> Tensor:
    """The risk of the rows of one or several views, of all processes in training."""
    values = torch.cat([values for _, values, _ in parts])
    weight = torch.cat([torch.ones_like(v) if w is None else w for _, v, w in parts])
    members = torch.cat([group] * len(parts)) if risk.needs_groups and group is not None else None
    index = None
    if risk.needs_index and all(rows.index is not None for rows, _, _ in parts):
        index = torch.cat([rows.index for rows, _, _ in parts if rows.index is not None])
    if trains:
        # Every process takes the risk of all rows. Gradients come back summed over processes, and data parallel
        # training averages them: that is the gradient of the one risk. An evaluation waits for no other process.
        values, _ = distributed.gather_rows_with_gradient(values)
        weight, _ = distributed.gather_rows(weight)
        members, index = (None if x is None else distributed.gather_rows(x)[0] for x in (members, index))
    reduced: Tensor = risk.reduced(values, weight=weight, group=members, index=index, gathered=trains)
    return reduced
