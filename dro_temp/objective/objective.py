"""The objective: a host, a predictor and a loss as one number to minimise; its output; its parameters in groups."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp import _faults, distributed
from dro_temp._checks import check_count, check_flag, check_kind, check_not_negative
from dro_temp._module_tree import ModuleTree
from dro_temp._pytree import one_line, pytree
from dro_temp._typing import PerRow, Scalar
from dro_temp.interfaces import (
    BackendChoice,
    HostAdapter,
    LossOutput,
    Penalty,
    RobustLoss,
    Rows,
    SampleRisk,
    TemperaturePredictor,
)
from dro_temp.objective import reduction, views
from dro_temp.objective.monitor import EVERY, TemperatureMonitor, UnreducedGradients
from dro_temp.risks.recorded import SampleWeights
from dro_temp.state import Committable, Staged, Transaction, staged_modules


@pytree(static=("backend",))
@dataclass(frozen=True)
class ObjectiveOutput:
    """The output of an `Objective`.

    Args:
        loss: the number to call `backward` on: the mean over views of each view's weighted mean over rows, plus
            penalties and a `tau_loss`.
        values: loss of each row, per view, with gradient. On a GPU the graph of `loss` may not pass through them.
        tau: temperature of each row, per view, detached.
        metrics: numbers to log, `"loss"`, `"{view}/loss"`, `"{view}/tau_mean"` and so on: detached
            scalars on the device, so that logging waits for it only when they are read.
        backend: the backend that computed each view's scores, and why.
        tau_values: with a `tau_loss`, its value of each row, per view; else empty.
    """

    loss: Scalar
    values: dict[str, PerRow]
    tau: dict[str, PerRow]
    metrics: dict[str, Scalar]
    backend: dict[str, BackendChoice] = field(default_factory=dict)
    tau_values: dict[str, PerRow] = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(self)


class Objective(Committable):
    r"""Composes a host, a predictor and a robust loss into one number to minimise.

    $$L = \frac1{|V|} \sum_{v \in V} \frac{\sum_i w_i F_v(h_i, \tau_i)}{\sum_i w_i} + \sum_p P_p$$

    Without a `tau_loss` the predictors learn from $F_v$, as in the paper. With one, $G_v$, the host learns from
    $F_v(h_i, \mathrm{stop}(\tau_i))$ and the predictors from $G_v(\mathrm{stop}(h_i), \tau_i)$, which is added.

    Args:
        host: the host.
        predictor: one for all views, or one per view.
        loss: one for all views, or one per view. A loss with memory of samples must be passed per view, since
            image row 7 and text row 7 are different rows.
        penalties: terms over all views together, such as `CyclicPenalty`. Each is reduced as if it were the value of
            every row of the first view: by a `count`, and over processes.
        tau_loss: a separate loss for the predictors: one for all views, or one per view.
            `QueuedLoss(KLRobustLoss(rho), ...)` trains temperatures of pairs on more outcomes than a batch has;
            `LikelihoodLoss()` fits them to labels while the host stays robust.
        risk: reduces the rows' values instead of the weighted mean: one `SampleRisk` for all views, or one per view;
            one with memory must be passed per view. A `RecordedRisk`, which knows samples by number, is one risk over
            the samples, with the rows of all views. Values of a `tau_loss` are still averaged.
        tau_from: `{"text": "image"}` for text rows at the temperatures of their images: views that take those of
            another view's rows at the same places, which are predicted once. Their own predictor is not used, and a
            state saved without `tau_from` does not load.
        check_finite: True to stop with the row's number at the first NaN or infinity in features, temperatures or
            values. On a device it does not wait: the error comes at the next forward, commit or save, when the step may
            have been taken (go on from a checkpoint), and `state.checks_now()` raises it where the fault is. In
            training with several processes it does wait, so that all stop together. Turn it off for float16 with a
            gradient scaler, which handles overflow by itself. Under `torch.compile` these checks are left out.
        monitor: True to check the temperatures every 50th training forward, and warn once (`TemperatureWarning`)
            if a predictor that reads rows returns one temperature for all, or a bound. Each check waits for the device.

    Raises:
        TypeError: a host, predictor, loss or penalty of the wrong type.
        ValueError: parts missing for a view, parts for unknown views, one memory used by two views, two penalties of
            one name, a penalty that does not support the host, a `tau_loss` that replays rows whose temperatures are
            those of another view or are kept at a level.
        FloatingPointError: non-finite features or values.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.Classifier(torch.nn.Linear(6, 4), torch.nn.Linear(4, 10))
        >>> objective = dt.Objective(host, dt.TempNet(4, tau_min=0.1, tau_max=4.0), dt.KLRobustLoss(rho=1.0))
        >>> output = objective(torch.randn(8, 6), torch.randint(10, (8,)))
        >>> output.loss.backward()
        >>> sorted(output.metrics)
        ['class/loss', 'class/tau_max', 'class/tau_mean', 'class/tau_min', 'class/tau_std', 'loss']
    """

    def __init__(
        self,
        host: HostAdapter,
        predictor: views.PerView[TemperaturePredictor],
        loss: views.PerView[RobustLoss],
        *,
        penalties: Iterable[Penalty] = (),
        tau_loss: views.PerView[RobustLoss] | None = None,
        risk: views.PerView[SampleRisk] | None = None,
        tau_from: Mapping[str, str] | None = None,
        check_finite: bool = True,
        monitor: bool = True,
    ) -> None:
        super().__init__()
        check_kind(
            "host", host, HostAdapter, "Wrap the model: dro_temp.hosts.TwoTower(...) or Classifier(...)."
        )
        views.check_views(host)
        self.host = host
        self.predictors = views.per_view("predictor", predictor, host.views, TemperaturePredictor)
        self.losses = views.per_view("loss", loss, host.views, RobustLoss)
        self.tau_losses = nn.ModuleDict()
        if tau_loss is not None:
            self.tau_losses = views.per_view("tau_loss", tau_loss, host.views, RobustLoss)
        self.risks = reduction.risks_of(risk, host)
        self._tau_from = views.checked_sources(tau_from, host, self.predictors)
        views.refuse_shared_memory(
            predictor=nn.ModuleDict({v: p for v, p in self.predictors.items() if v not in self._tau_from}),
            loss=self.losses,
            tau_loss=self.tau_losses,
            risk=self.risks,
        )
        self.predictors.update({view: self.predictors[source] for view, source in self._tau_from.items()})
        views.refuse_replay(self.tau_losses, self.predictors, self._tau_from)
        self.penalties = nn.ModuleDict(views.named_penalties(penalties, host))
        check_flag("check_finite", check_finite)
        check_flag("monitor", monitor)
        self.check_finite = check_finite
        self._monitor = TemperatureMonitor(host.views) if monitor else None
        self._forwards = 0
        self._transaction = Transaction(self.predictors, self.losses, self.tau_losses, self.risks)
        self._modules_below = ModuleTree(self)
        self._unreduced = UnreducedGradients(self)
        # Every process commits the same memory; broadcasting it at each forward would cost more than the step.
        self._ddp_params_and_buffers_to_ignore = [
            f"{name}.{buffer}"
            for name, module in self.named_modules()
            if isinstance(module, Staged)
            for buffer in module.memory
            if buffer in module._buffers
        ]
        if host.frozen:
            host.requires_grad_(False).eval()

    def forward(
        self, *args: Any, count: float | Tensor | None = None, group: Any = None, **batch: Any
    ) -> ObjectiveOutput:
        """Loss of one batch.

        Args:
            *args: the host's arguments.
            count: divide each view's weighted sum by this instead of by its sum of weights: the number of rows
                in a whole accumulation window, say. In several processes, that of all of them. Not beside a risk.
            group: [n] number of each row's group, for a risk that needs it; without such a risk, for a host of pairs:
                those of one group are no negatives of each other. Where both need groups, pass the host's by place.
            **batch: what the host takes.
        """
        if _faults.pending.checks:
            _faults.raise_faults()
        if self.training and torch.is_grad_enabled():
            self._transaction.refuse_uncommitted()
        with self._transaction.recording() as before:
            output = self._forward(args, count, group, batch)
        values = (output.loss, *output.values.values(), *output.tau_values.values())
        self._transaction.enter(before, values, self._modules_below.parameters)
        return output

    def _forward(
        self, args: tuple[Any, ...], count: float | Tensor | None, group: Any, batch: dict[str, Any]
    ) -> ObjectiveOutput:
        if (
            group is not None
            and self.host.takes_groups
            and not any(r.needs_groups for r in self.risks.values())
        ):
            batch, group = batch | {"group": group}, None
        rows = self.host(*args, **batch)
        single = distributed.world_size() == 1
        # In training a check that fails on one process fails on all; an evaluation may run on one alone.
        alone, device = single or not self.training, rows[self.host.views[0]].target.device
        with nullcontext() if alone else distributed.raising_together(device):
            if not self.host.checks_values:
                for r in rows.values():
                    r.check_values()
            if not single:  # the parts that read or write a table check it otherwise
                self._check_index(rows)
            if self.risks or group is not None:
                trains = self.training and torch.is_grad_enabled()
                reduction.check_for_risks(self.risks, rows, count, group, trains)
            count = None if count is None else reduction.checked_count(count)
        mirrored = self.host.mirrored
        tau_outputs: dict[str, LossOutput] = {}
        taken = views.taken_temperatures(self._tau_from, rows, self.predictors) if self._tau_from else {}
        if self.tau_losses:
            outputs, tau_outputs = views.evaluate_separately(
                mirrored, rows, self.predictors, self.losses, self.tau_losses, taken
            )
        else:
            predictors: dict[str, Any] = {view: self.predictors[view] for view in rows} | taken
            outputs = views.evaluate_views(mirrored, rows, predictors, self.losses)
        valid = {view: reduction.counted_rows(r) for view, r in rows.items()}
        if self.training:
            monitor = None if torch.compiler.is_compiling() else self._monitor
            if monitor is not None:
                self._forwards += 1
            for view, output in list((tau_outputs or outputs).items()):
                predictor = self.predictors[view]
                if predictor.observes_gradient:
                    views.register_tau_grad_hook(predictor, rows[view], output)
                    outputs[view] = replace(outputs[view], mean=None)  # its hooks are on the values
                if predictor.observes_tau and view not in self._tau_from and torch.is_grad_enabled():
                    predictor.observe_tau(taken.get(view, output.tau), valid[view])  # type: ignore[operator]
                # A step that is captured in a CUDA graph reads nothing, and its replays are not monitored.
                if monitor is not None and self._forwards % EVERY == 0 and not _faults.is_capturing():
                    monitor.check(view, predictor, output.tau)
        if self.check_finite:
            with nullcontext() if alone else distributed.raising_together(device):
                reduction.refuse_non_finite(rows, outputs, valid)
        means = reduction.view_means(self.risks, rows, outputs, valid, count, group, self.training)
        penalties = self._penalties(rows, count) if self.penalties else {}
        # A tensor of its own also where there is one view: a loss that is scaled in place leaves the view's mean.
        loss = (
            next(iter(means.values())).clone()
            if len(means) == 1
            else torch.stack(list(means.values())).mean()
        )
        loss = loss + sum(penalties.values()) if penalties else loss
        terms: dict[str, Tensor] = {}
        if tau_outputs:
            terms = reduction.tau_loss_terms(
                rows, tau_outputs, self.predictors, self.tau_losses, count, self.training
            )
            loss = loss + torch.stack(list(terms.values())).mean()
        metrics: dict[str, Tensor] = {"loss": loss.detach()}
        metrics |= {f"{view}/tau_loss": term.detach() for view, term in terms.items()}
        metrics |= {f"penalty/{name}": term.detach() for name, term in penalties.items()}
        for view in rows:
            metrics |= reduction.temperature_metrics(view, means[view], outputs[view].tau, valid[view])
        if self.training and not single and not torch.compiler.is_compiling():
            self._unreduced.check_after(loss)
        return ObjectiveOutput(
            loss=loss,
            values={view: output.values for view, output in outputs.items()},
            tau={view: output.tau.detach() for view, output in outputs.items()},
            metrics=metrics,
            backend={view: output.backend for view, output in outputs.items()},
            tau_values={view: output.values for view, output in tau_outputs.items()},
        )

    def _check_index(self, rows: dict[str, Rows]) -> None:
        for view, r in rows.items():
            parts = [part[view] for part in (self.predictors, self.losses, self.tau_losses) if view in part]
            for staged in staged_modules(module for part in parts for module in part.modules()):
                if r.index is not None:
                    staged.check(r.index.masked_fill(~r.valid, 0))

    def _penalties(self, rows: dict[str, Rows], count: float | Tensor | None) -> dict[str, Tensor]:
        first, terms = rows[self.host.views[0]], {}
        for name, penalty in self.penalties.items():
            values = penalty(rows).expand(len(first))
            weight = first.valid if first.weight is None else first.weight * first.valid
            terms[name] = reduction.weighted_mean(values, weight.to(values.dtype), count, self.training)
        return terms

    def rows_to_predict(self, view: str, rows: Mapping[str, Rows]) -> Rows:
        """A view's rows with what its predictor reads of them: under `tau_from`, features of another view.

        Args:
            view: the view.
            rows: those of all views, as the host makes them.
        """
        source = rows[self._tau_from.get(view, view)]
        return replace(rows[view], features=source.features, index=source.index)

    @torch.no_grad()
    def start_prototypes(self, *args: Any, **batch: Any) -> None:
        """Initialise each view's prototypes from the features of the other views in one batch, as the paper does.

        Call it once, before training, with a batch of a few hundred samples, as the host takes it. Predictors without
        prototypes do not change; under `tau_from` a predictor starts from the views other than the one that it reads.

        Raises:
            ValueError: the host has one view only.
        """
        if len(self.host.views) < 2:
            raise ValueError(
                "expected a host with at least two views, whose features can start each other's prototypes, "
                f"received one with {list(self.host.views)}. Call encoder.set_prototypes(embeddings) yourself."
            )
        rows = self.host(*args, **batch)
        for view in self.host.views:
            if view in self._tau_from:  # its predictor is that of another view, and starts there
                continue
            others = [r.features for other, r in rows.items() if other != view and r.features is not None]
            self.predictors[view].start_prototypes(torch.cat(others))  # type: ignore[operator]

    def resize(
        self, num_samples: int, *, shrink: bool = False, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Continue with a data set of another size: all tables of samples are resized, or, on an error, none is.

        Old samples keep their numbers and entries, new ones get initial values. Queues of keys, and of risks all but a
        `RecordedRisk`, have no entry per sample, and do not change. Call it between steps, before the objective is
        wrapped for several processes.

        Args:
            num_samples: the new size of the data set.
            shrink: True to allow a smaller size, which forgets the last samples.
            optimizer: the optimizer that trains the objective, if there is one already. Only an
                `IndividualTemperature` with `update=None` needs it: its moments grow with the table.

        Raises:
            RuntimeError: proposals are pending: resize after `optimizer.step()`.
            ValueError: a smaller size without `shrink`, or one below 1; an optimizer that does not train a table which
                is a parameter.

        Example:
            >>> import torch, dro_temp as dt
            >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
            >>> objective = dt.recipes.sogclr(host, num_samples=100)
            >>> objective.resize(120)
            >>> objective.losses["image"].estimator
            LogMovingAverage(120)
        """
        check_count("num_samples", num_samples)
        parts = (*self.predictors.modules(), *self.losses.modules(), *self.tau_losses.modules())
        tables = [part for part in staged_modules(parts) if hasattr(part, "resize")]
        tables += [part for part in staged_modules(self.risks.modules()) if isinstance(part, SampleWeights)]
        for table in tables:
            table.check_resize(num_samples, shrink=shrink, optimizer=optimizer)
        for table in tables:
            table.resize(num_samples, shrink=shrink, optimizer=optimizer)  # type: ignore[operator]

    @property
    def needs_index(self) -> bool:
        """True if training needs sample numbers: a loss or a risk remembers samples, or a predictor has a table."""
        tables = any(staged_modules(part.modules()) for part in (self.losses, self.tau_losses))
        readers: list[Any] = [*self.predictors.values(), *self.risks.values()]
        return tables or any(
            "index" in getattr(r, "reads", ()) or getattr(r, "needs_index", False) for r in readers
        )

    def _checked_parts(self, prefix: str) -> list[tuple[str, nn.Module]]:
        # Without the host: models may convert their state while loading.
        names = ("predictors", "losses", "tau_losses", "risks", "penalties")
        return [(f"{prefix}{name}.", getattr(self, name)) for name in names]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        views.refuse_state_of_own_temperatures(self._tau_from, state_dict, f"{prefix}predictors.")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and drop the proposals that belong to them."""
        self.discard_backpropagated()  # first: it looks at the gradients
        super().zero_grad(set_to_none)

    def param_groups(
        self,
        *,
        lr: float,
        tau_lr: float | None = None,
        host: Iterable[dict[str, Any]] | None = None,
        **host_options: Any,
    ) -> list[dict[str, Any]]:
        """Parameter groups for any torch optimizer: "host", "loss" and "temperature".

        Args:
            lr: learning rate of the host, and of parameters of losses and penalties (`SigmoidLoss` has one).
            tau_lr: learning rate of the predictors, and of a risk's temperature; that of the host if None.
            host: groups of the host's parameters in place of one, such as
                `timm.optim.param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)`; each is named "host"
                and has the learning rate lr unless it has its own. Its `lr_scale` is for timm's schedulers: for
                others, multiply it into "lr" yourself.
            **host_options: further options of the host's group, for example weight_decay. The other groups have
                weight decay 0: decay would pull temperatures towards the middle of their bounds, and a bias to 0.

        Returns:
            One to three groups, more with `host`; parts without parameters that train, such as a frozen host, have
            none.

        Raises:
            ValueError: there is nothing to train; groups of the host that leave out a parameter or hold another's.
        """
        tau_lr = lr if tau_lr is None else tau_lr
        for name, rate in (("lr", lr), ("tau_lr", tau_lr)):
            if not isinstance(rate, Tensor):  # which optimizers accept as well
                check_not_negative(name, rate)
        temperature = _trained(self.predictors, self.risks)
        loss = _trained(self.losses, self.tau_losses, self.penalties, without=temperature)
        rest = _trained(self, without=temperature + loss)
        groups = [
            *_host_groups(self.host, rest, host, {"lr": lr, **host_options}),
            {"name": "loss", "params": loss, "lr": lr, "weight_decay": 0.0},
            {"name": "temperature", "params": temperature, "lr": tau_lr, "weight_decay": 0.0},
        ]
        if not any(group["params"] for group in groups):
            raise ValueError(
                "expected something to train, received a frozen host and predictors without parameters. "
                "Use a TempNet or LearnableTemperature, or frozen=False. A table of individual temperatures with "
                "an update of its own needs no optimizer: call objective.commit() after backward."
            )
        return [group for group in groups if group["params"]]


def _trained(*modules: nn.Module, without: Sequence[nn.Parameter] = ()) -> list[nn.Parameter]:
    """Parameters that require gradient, each once, except those `without`."""
    excluded = {id(p) for p in without}
    unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return [p for key, p in unique.items() if key not in excluded]


def _host_groups(
    host: nn.Module,
    params: list[nn.Parameter],
    host_params: Iterable[dict[str, Any]] | None,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """The host's parameters as one group, or as the user's groups with the options as defaults."""
    if host_params is None:
        return [{"name": "host", "params": params, **options}]
    groups = list(host_params) if isinstance(host_params, Iterable) else [host_params]
    if not all(isinstance(group, Mapping) and "params" in group for group in groups):
        raise TypeError(
            'expected host as parameter groups, dicts with a list of "params", received '
            f"{type(host_params).__name__}. Pass "
            'host=[{"params": list(objective.host.parameters()), "lr": 1e-4}], or leave it out.'
        )
    groups = [{**options, **group, "name": "host", "params": list(group["params"])} for group in groups]
    members = [id(p) for group in groups for p in group["params"]]
    names = {id(p): name for name, p in host.named_parameters()}
    missing = [names.get(id(p), "?") for p in params if id(p) not in set(members)]
    unknown = len(set(members) - {id(p) for p in params})
    if missing or unknown or len(members) != len(set(members)):
        what = f"none with {missing[0]}" if missing else f"{unknown or 'some twice, and'} others"
        raise ValueError(
            f"expected groups of all of the host's {len(params)} trained parameters, each once, received {what}. Make "
            "them from the model that the host holds: param_groups_layer_decay(objective.host.model, ...)."
        )
    return groups
