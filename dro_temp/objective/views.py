"""The parts of each view, and every view's temperatures and values."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from dro_temp import _faults
from dro_temp._checks import check_kind
from dro_temp.interfaces import HostAdapter, LossOutput, Penalty, Rows, TemperaturePredictor
from dro_temp.state import staged_modules

Part = TypeVar("Part", bound=nn.Module)
PerView: TypeAlias = Part | Mapping[str, Part]


def check_views(host: HostAdapter) -> None:
    """Raise unless the host names its views, and mirrors two of them or none."""
    name = type(host).__name__
    views = getattr(host, "views", None)
    if isinstance(views, str) or not views or not all(isinstance(view, str) for view in views):
        raise ValueError(
            f'expected {name}.views as a tuple of names, received {views!r}. Write views = ("class",), say.'
        )
    mirrored = host.mirrored
    if mirrored is not None and (len(set(mirrored)) != 2 or not set(mirrored) <= set(views)):
        raise ValueError(
            f"expected {name}.mirrored as two of its views {list(views)}, or None, received {mirrored!r}. Write "
            'mirrored = ("image", "text"), say.'
        )


def per_view(name: str, part: PerView[Any], views: tuple[str, ...], kind: type) -> nn.ModuleDict:
    """One part for each view, from one for all or from a mapping by view."""
    if not isinstance(part, Mapping):
        check_kind(name, part, kind, f"Pass one, or {{view: ... for view in {list(views)}}}.")
        return nn.ModuleDict(dict.fromkeys(views, part))
    if set(part) != set(views):
        raise ValueError(
            f"expected one {name}, or one for each of the host's views {list(views)}, received views "
            f"{sorted(part)}. Write {name}={{view: ... for view in host.views}}."
        )
    for view in views:
        instead = "The order is Objective(host, predictor, loss)."
        check_kind(f"the {name} of view {view!r}", part[view], kind, instead)
    return nn.ModuleDict({view: part[view] for view in views})


def checked_sources(
    tau_from: Mapping[str, str] | None, host: HostAdapter, predictors: nn.ModuleDict
) -> dict[str, str]:
    """The view whose temperatures another one takes, by the name of the latter; raises for what cannot be taken."""
    views, sources = list(host.views), {}
    if tau_from is not None and not isinstance(tau_from, Mapping):
        raise TypeError(
            f"expected tau_from as a mapping of views, received {type(tau_from).__name__}. Write "
            'tau_from={"text": "image"}.'
        )
    for view, source in (tau_from or {}).items():
        if view not in views or source not in views or source in (tau_from or {}):
            raise ValueError(
                f"expected tau_from to name views out of {views} that take temperatures, and ones that predict their "
                f"own, received {view!r}: {source!r}. Write tau_from={{{views[-1]!r}: {views[0]!r}}}, say."
            )
        predictor: Any = predictors[source]
        if predictor.reads_scores or predictor.observes_gradient:
            what = (
                "reads scores"
                if predictor.reads_scores
                else "updates itself from the gradient of its own view"
            )
            raise ValueError(
                f"expected a predictor of features or sample numbers in view {source!r}, whose temperatures view "
                f"{view!r} takes, received {type(predictor).__name__}, which {what}. Use a TempNet of embeddings, or "
                "leave tau_from out."
            )
        sources[view] = source
    return sources


def taken_temperatures(
    sources: Mapping[str, str], rows: Mapping[str, Rows], predictors: nn.ModuleDict
) -> dict[str, Tensor]:
    """Temperatures of the views that take them from another one, and of that one: predicted once."""
    taus: dict[str, Tensor] = {}
    for view, source in sources.items():
        if len(rows[view]) != len(rows[source]):
            raise ValueError(
                f"expected as many rows of view {view!r} as of {source!r}, whose temperatures it takes, received "
                f"{len(rows[view])} and {len(rows[source])}. Leave tau_from out for a host whose views are no pairs."
            )
        if source not in taus:
            with torch.autocast(rows[source].target.device.type, enabled=False):
                taus[source] = predictors[source].predict(rows[source])  # type: ignore[operator]
        taus[view] = taus[source]
    return taus


def refuse_replay(tau_losses: nn.ModuleDict, predictors: nn.ModuleDict, sources: Mapping[str, str]) -> None:
    """Raise if a loss replays rows of which the predictor is not given what it needs: their own features alone."""
    for view, loss in tau_losses.items():
        if not getattr(loss, "replays", False):
            continue
        predictor: Any = predictors[view]
        if view in sources:
            why = f"whose temperatures come from features of view {sources[view]!r}, which are not stored"
        elif predictor.observes_tau:
            why = f"whose {type(predictor).__name__} is shown the temperatures of the batch's own rows only"
        else:
            continue
        raise ValueError(
            f"expected no replayed rows in the tau_loss of view {view!r}, {why}, received a "
            f"{type(loss).__name__} that replays. Pass replay=0."
        )


def refuse_state_of_own_temperatures(
    sources: Mapping[str, str], state: Mapping[str, Any], prefix: str
) -> None:
    """Raise if a state has another predictor for a view than for the one whose temperatures it takes."""
    for view, source in sources.items():
        own, taken = f"{prefix}{view}.", f"{prefix}{source}."
        for name, value in state.items():
            other = state.get(taken + name.removeprefix(own)) if name.startswith(own) else None
            if isinstance(value, Tensor) and isinstance(other, Tensor) and not _may_be_same(value, other):
                raise RuntimeError(
                    f"expected a state saved with tau_from={{{view!r}: {source!r}}}, received one whose predictors of "
                    f"views {view!r} and {source!r} differ in {name.removeprefix(own)}. Load it into an objective "
                    f"without tau_from, or copy the entries {taken}* over {own}* first; nothing was loaded."
                )


def _may_be_same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN included, as far as they can be compared."""
    known = {type(x), type(y)} <= {Tensor, nn.Parameter} and not (x.is_meta or y.is_meta)
    if x is y or x.shape != y.shape or not known:
        return x.shape == y.shape
    y = y.to(x.device)
    return bool(((x == y) | ((x != x) & (y != y))).all())


def named_penalties(penalties: Iterable[Penalty], host: HostAdapter) -> dict[str, Penalty]:
    """Penalties by name, each checked against the host."""
    if not isinstance(penalties, Iterable):
        raise TypeError(
            f"expected penalties as a sequence, received {type(penalties).__name__}. Write penalties=(penalty,)."
        )
    named: dict[str, Penalty] = {}
    for penalty in penalties:
        check_kind("each of penalties", penalty, Penalty, "Pass penalties=(CyclicPenalty(),), say.")
        if penalty.name in named:
            raise ValueError(
                f"expected penalties of different names, received two named {penalty.name!r}, one of which the "
                "metrics would hide. Raise the weight of one, or set penalty.name on the other."
            )
        penalty.check_host(host)
        named[penalty.name] = penalty
    return named


def refuse_shared_memory(**parts: nn.ModuleDict) -> None:
    """Raise if two views, or two parts of one view, share a memory."""
    owner: dict[int, tuple[str, str]] = {}
    for part, modules in parts.items():
        for view, module in modules.items():
            for staged in staged_modules(module.modules()):
                first_part, first_view = owner.setdefault(id(staged), (part, view))
                if (first_part, first_view) == (part, view):
                    continue
                twice = "it would be written twice a step, at two temperatures"
                why = twice if first_view == view else "sample 7 would mean two different rows"
                raise ValueError(
                    f"expected a memory of its own for each view, received one {type(staged).__name__} shared "
                    f"by the {first_part} of view {first_view!r} and the {part} of view {view!r}: {why}. Build one per "
                    "view: {view: KLRobustLoss(rho, estimator=LogMovingAverage(n)) for view in host.views}; others for "
                    "a tau_loss, and for a predictor or a risk that remembers."
                )


def evaluate_views(
    mirrored: tuple[str, str] | None,
    rows: Mapping[str, Rows],
    taus: Mapping[str, Tensor | TemperaturePredictor],
    losses: nn.ModuleDict,
) -> dict[str, LossOutput]:
    """Temperatures and values of each view's rows, which were checked; scores of `mirrored` views are computed once."""
    outputs: dict[str, LossOutput] = {}
    if mirrored is not None and all(view in rows for view in mirrored):
        first, second = mirrored
        pair = losses[first].evaluate_mirrored(  # type: ignore[operator]
            losses[second], (rows[first], rows[second]), (taus[first], taus[second])
        )
        if pair is not None:
            outputs = {first: pair[0], second: pair[1]}
    for view in rows:
        if view not in outputs:
            outputs[view] = losses[view].evaluate(rows[view], taus[view], check=False)  # type: ignore[operator]
    return outputs


def evaluate_separately(
    mirrored: tuple[str, str] | None,
    rows: Mapping[str, Rows],
    predictors: nn.ModuleDict,
    losses: nn.ModuleDict,
    tau_losses: nn.ModuleDict,
    taken: Mapping[str, Tensor],
) -> tuple[dict[str, LossOutput], dict[str, LossOutput]]:
    """The host's loss at detached temperatures, and the predictors' loss on detached rows.

    A predictor that reads scores runs inside the pass of its own loss, which needs no score matrix; the host's loss
    uses the temperatures of that pass. Those in `taken` are predicted already.
    """
    taus: dict[str, Tensor | TemperaturePredictor] = {**taken}
    for view, r in rows.items():
        if view in taus:
            continue
        predictor = predictors[view]
        assert isinstance(predictor, TemperaturePredictor)
        taus[view] = predictor if predictor.reads_scores else predictor.predict(r)
    detached = {view: r.detached() for view, r in rows.items()}
    tau_outputs = evaluate_views(None, detached, taus, tau_losses)
    fixed: dict[str, Tensor | TemperaturePredictor] = {}
    fixed |= {view: output.tau.detach() for view, output in tau_outputs.items()}
    return evaluate_views(mirrored, rows, fixed, losses), tau_outputs


def register_tau_grad_hook(predictor: Any, rows: Rows, output: LossOutput) -> None:
    """Pass each row's dF/dtau to a predictor that updates itself from it, during backward."""
    values, tau = output.values, output.tau
    if not (values.requires_grad and tau.requires_grad):
        return
    assert rows.index is not None
    # d(loss)/d(values): reduction, accumulation and loss scale together
    upstream: dict[str, Tensor] = {}

    def observe(gradient: Tensor) -> None:
        assert rows.index is not None
        index, scale = rows.index.long(), upstream["scale"]  # uint8 has no -1
        counted = scale != 0
        gradient = gradient / torch.where(counted, scale, 1.0)
        if predictor.observes_uncounted_rows and (
            index.is_cuda or _faults.everywhere
        ):  # how many count is not read
            predictor.observe(torch.where(counted, index, -1), torch.where(counted, gradient, 0.0))
        else:
            predictor.observe(index[counted], gradient[counted])

    values.register_hook(lambda gradient: upstream.__setitem__("scale", gradient))  # type: ignore[no-untyped-call]
    tau.register_hook(observe)  # type: ignore[no-untyped-call]
