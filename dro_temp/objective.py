"""Objective = host + predictor + loss. With optim.py, the only place that knows all three."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._typing import PerRow, Scalar
from dro_temp.interfaces import HostAdapter, RobustLoss, Rows, Staged, TemperaturePredictor, staged_modules

Part = TypeVar("Part", bound=nn.Module)
PerView: TypeAlias = Part | Mapping[str, Part]


@dataclass(frozen=True)
class Output:
    """What an `Objective` returns.

    Args:
        loss: the number to call `backward` on: the mean over the views of each view's weighted mean over rows.
        values: loss of each row, per view.
        tau: temperature of each row, per view, detached.
        metrics: numbers that one would log, `"loss"`, `"{view}/loss"`, `"{view}/tau_mean"` and so on: detached
            scalars on the device, so that logging waits for it only when they are read.
    """

    loss: Scalar
    values: dict[str, PerRow]
    tau: dict[str, PerRow]
    metrics: dict[str, Scalar]


class Objective(nn.Module):
    r"""Composes a host, a predictor and a robust loss into one number to minimise.

    $$L = \frac1{|V|} \sum_{v \in V} \frac{\sum_i w_i F_v(h_i, \tau_i)}{\sum_i w_i}$$

    Args:
        host: makes rows.
        predictor: one for all views, or one per view.
        loss: one for all views, or one per view. A loss that remembers samples must be given per view, since
            image row 7 and text row 7 are different rows.
        check_finite: True to stop with the row's number at the first NaN or infinity in features or values. It
            waits for the device once per call; turn it off for float16 with a gradient scaler, which handles
            overflow by itself.

    Raises:
        ValueError: parts missing for a view, parts for unknown views, one memory used by two views.
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
        predictor: PerView[TemperaturePredictor],
        loss: PerView[RobustLoss],
        *,
        check_finite: bool = True,
    ) -> None:
        super().__init__()
        self.host = host
        self.predictors = nn.ModuleDict(_per_view("predictor", predictor, host.views))
        self.losses = nn.ModuleDict(_per_view("loss", loss, host.views))
        _refuse_shared_memory(self.predictors, self.losses)
        self.check_finite = check_finite
        self._versions_when_staged: int | None = None
        if host.frozen:
            host.requires_grad_(False).eval()

    def forward(self, *args: Any, count: float | Tensor | None = None, **batch: Any) -> Output:
        """Loss of one batch.

        Args:
            *args: what the host takes.
            count: divide each view's weighted sum by this instead of by its sum of weights: the number of rows
                in a whole accumulation window, say.
            **batch: what the host takes.
        """
        self._refuse_uncommitted()
        before = {staged: len(staged.staged) for staged in self._memory()}
        try:
            output = self._forward(args, count, batch)
        except BaseException:
            # Nothing half-proposed stays behind. Only this forward's: activation checkpointing ends its
            # recomputation by an exception, too.
            for staged, keep in before.items():
                staged.discard(keep)
            raise
        if self.pending:
            self._versions_when_staged = self._parameter_versions()
        return output

    def _forward(self, args: tuple[Any, ...], count: float | Tensor | None, batch: dict[str, Any]) -> Output:
        rows = {view: r.dense() for view, r in self.host(*args, **batch).items()}
        taus: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for view in self.host.views:
            taus[view] = self.predictors[view].of(rows[view])  # type: ignore[operator]
            values[view] = self.losses[view](rows[view], taus[view])
            self._let_observe(view, rows[view], taus[view], values[view])
        if self.check_finite:
            _refuse_non_finite(rows, values)
        per_view = {view: _mean(values[view], rows[view], count) for view in self.host.views}
        loss = torch.stack(list(per_view.values())).mean()
        metrics: dict[str, Tensor] = {"loss": loss.detach()}
        for view in self.host.views:
            metrics |= _metrics(view, per_view[view], taus[view])
        return Output(
            loss=loss,
            values=values,
            tau={view: tau.detach() for view, tau in taus.items()},
            metrics=metrics,
        )

    def _let_observe(self, view: str, rows: Rows, tau: Tensor, values: Tensor) -> None:
        predictor = self.predictors[view]
        assert isinstance(predictor, TemperaturePredictor)
        if not (predictor.observes_gradient and self.training and values.requires_grad and tau.requires_grad):
            return
        assert rows.index is not None
        upstream: list[Tensor] = []  # d(loss)/d(values): reduction, accumulation and loss scale together

        def observe(gradient: Tensor) -> None:
            scale = upstream.pop()
            counted = scale != 0
            predictor.observe(rows.index[counted], gradient[counted] / scale[counted])  # type: ignore[index]

        values.register_hook(upstream.append)  # type: ignore[no-untyped-call]
        tau.register_hook(observe)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def start_prototypes(self, *args: Any, **batch: Any) -> None:
        """Start each view's predictor from the features of the other views in one batch, as the paper does.

        Call it once, before training, with a batch of a few hundred samples. Predictors without prototypes are
        left as they are.

        Args:
            *args: what the host takes.
            **batch: what the host takes.

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
            others = [r.features for other, r in rows.items() if other != view and r.features is not None]
            self.predictors[view].start_prototypes(torch.cat(others))  # type: ignore[operator]

    def _memory(self) -> list[Staged]:
        # The host, which may have thousands of modules, has none.
        return staged_modules([*self.predictors.modules(), *self.losses.modules()])

    @property
    def pending(self) -> bool:
        """True while a forward's proposals were neither committed nor discarded."""
        return any(staged.pending for staged in self._memory())

    def commit(self) -> None:
        """Write what forward proposed. `CompositionalOptimizer` calls it after each step that was taken."""
        for staged in self._memory():
            staged.commit()

    def discard(self) -> None:
        """Forget what forward proposed. `CompositionalOptimizer` calls it after each step that was skipped."""
        for staged in self._memory():
            staged.discard()

    def _parameter_versions(self) -> int:
        return sum(p._version for p in self.parameters() if p.requires_grad)

    def _refuse_uncommitted(self) -> None:
        if not (self.training and torch.is_grad_enabled() and self.pending):
            return
        if self._parameter_versions() != self._versions_when_staged:
            self.discard()
            raise RuntimeError(
                "expected the estimator's proposals to be committed by the optimizer step that followed them, "
                "received a parameter update without a commit. Step with dro_temp.CompositionalOptimizer("
                "optimizer, objective), or call objective.commit() after each optimizer.step()."
            )

    def param_groups(
        self, *, lr: float, tau_lr: float | None = None, **host_options: Any
    ) -> list[dict[str, Any]]:
        """Parameter groups for any torch optimizer: "host" and "temperature".

        Args:
            lr: learning rate of the host (and of parameters of the loss).
            tau_lr: learning rate of the predictors; that of the host if None.
            **host_options: further options of the host's group, for example weight_decay. The predictors' group
                has weight decay 0: decay would pull temperatures towards the middle of their bounds.

        Returns:
            One or two groups; a frozen host and a predictor without parameters have none.

        Raises:
            ValueError: there is nothing to train.
        """
        temperature = [p for p in self.predictors.parameters() if p.requires_grad]
        taken = {id(p) for p in temperature}
        host = [p for p in self.parameters() if p.requires_grad and id(p) not in taken]
        groups = [
            {"name": "host", "params": host, "lr": lr, **host_options},
            {
                "name": "temperature",
                "params": temperature,
                "lr": lr if tau_lr is None else tau_lr,
                "weight_decay": 0.0,
            },
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise ValueError(
                "expected something to train, received a frozen host and predictors without parameters. "
                "Use a TempNet or LearnableTemperature, or frozen=False."
            )
        return groups


def _per_view(name: str, part: PerView[Part], views: tuple[str, ...]) -> dict[str, Part]:
    if isinstance(part, nn.Module):
        return dict.fromkeys(views, part)
    if set(part) != set(views):
        raise ValueError(
            f"expected one {name}, or one for each of the host's views {list(views)}, received views "
            f"{sorted(part)}. Write {name}={{view: ... for view in host.views}}."
        )
    return {view: part[view] for view in views}


def _refuse_shared_memory(*parts: nn.ModuleDict) -> None:
    for part in parts:
        owner: dict[int, str] = {}
        for view, module in part.items():
            for staged in staged_modules(module.modules()):
                first = owner.setdefault(id(staged), view)
                if first != view:
                    raise ValueError(
                        f"expected a memory of its own for each view, received one {type(staged).__name__} shared "
                        f"by views {first!r} and {view!r}: sample 7 would mean two different rows. Build one per "
                        "view: {view: KLRobustLoss(rho, estimator=LogMovingAverage(n)) for view in host.views}."
                    )


def _refuse_non_finite(rows: dict[str, Rows], values: dict[str, Tensor]) -> None:
    if torch.compiler.is_compiling():
        return
    bad: dict[tuple[str, str], Tensor] = {}
    for view, r in rows.items():
        if r.features is not None:
            bad["features", view] = ~r.features.detach().isfinite().all(1) & r.valid
        bad["loss", view] = ~values[view].detach().isfinite()
    if not bool(torch.cat(list(bad.values())).any()):  # the one wait for the device
        return
    for (what, view), mask in bad.items():
        if bool(mask.any()):
            positions = mask.nonzero()[:, 0].tolist()
            index = rows[view].index
            samples = "" if index is None else f" (samples {index[mask].tolist()[:8]})"
            raise FloatingPointError(
                f"expected finite {what} in view {view!r}, received NaN or infinity in rows {positions[:8]}"
                f"{samples}. Look at those inputs; lower the learning rate or clip gradients if the model "
                "diverged; pass check_finite=False if a gradient scaler is to handle overflow."
            )


def _mean(values: Tensor, rows: Rows, count: float | Tensor | None) -> Tensor:
    weight = rows.valid.to(values.dtype) if rows.weight is None else rows.weight.to(values.dtype) * rows.valid
    total = (values * weight).sum()
    if count is not None:
        return total / count
    everywhere = distributed.sum_over_processes(weight.sum())
    # Data parallel training averages gradients over processes; undo it for processes of unequal weight.
    return total * distributed.world_size() / everywhere.clamp(min=torch.finfo(values.dtype).tiny)


@torch.no_grad()
def _metrics(view: str, loss: Tensor, tau: Tensor) -> dict[str, Tensor]:
    metrics = {"loss": loss.detach()}
    if len(tau):
        metrics |= {
            "tau_mean": tau.mean(),
            "tau_std": tau.std(correction=0),
            "tau_min": tau.min(),
            "tau_max": tau.max(),
        }
    return {f"{view}/{name}": value for name, value in metrics.items()}
