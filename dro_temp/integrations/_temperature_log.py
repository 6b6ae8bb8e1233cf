"""Temperatures in a trainer's own log: beside its loss, for TensorBoard, W&B and every other logger it writes to."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from dro_temp import distributed
from dro_temp._checks import with_article
from dro_temp._optional import optional_module

Trainer = TypeVar("Trainer")

#: Count, mean, and sum of squared distances from the mean.
_Moments = tuple[Tensor, Tensor, Tensor]


class TemperatureMoments:
    """Mean and spread of temperatures per view since they were last read; training and evaluation apart.

    Nothing waits for the device until they are read.

    Args:
        views: names of the views.
    """

    def __init__(self, views: tuple[str, ...]) -> None:
        self.views = views
        self._moments: dict[bool, dict[str, _Moments]] = {True: {}, False: {}}

    @torch.no_grad()
    def add(self, view: str, tau: Tensor, valid: Tensor | None = None, *, training: bool) -> None:
        """Add a batch.

        Args:
            view: its view.
            tau: [n].
            valid: [n] True where a row counts; None: all do.
            training: whether it is a training batch.
        """
        tau = tau.detach().float()
        weight = torch.ones_like(tau) if valid is None else valid.to(tau)
        count = weight.sum()
        mean = (weight * tau).sum() / count.clamp(min=1)
        batch = count, mean, (weight * (tau - mean).square()).sum()
        before = self._moments[training].get(view)
        self._moments[training][view] = batch if before is None else _merged(before, batch)

    def clear(self, *, training: bool) -> None:
        """Forget the batches so far."""
        self._moments[training] = {}

    def read(self, *, training: bool, device: torch.device) -> dict[str, float]:
        """Means and standard deviations over all processes' rows, then clear. All processes call it together.

        Args:
            training: whether of training batches.
            device: where processes add up.
        """
        moments = self._moments[training]
        self.clear(training=training)
        sums = torch.stack(
            [_sums(moments[v]) if v in moments else torch.zeros(3).double() for v in self.views]
        )
        if distributed.world_size() > 1:
            sums = distributed.sum_over_processes(sums.to(device))
        result: dict[str, float] = {}
        for view, (count, total, squares) in zip(self.views, sums.tolist(), strict=True):
            if count:
                prefix = f"{view}/" if len(self.views) > 1 else ""
                mean = total / count
                result[f"{prefix}tau_mean"] = mean
                result[f"{prefix}tau_std"] = max(squares / count - mean**2, 0.0) ** 0.5
        return result


def _merged(a: _Moments, b: _Moments) -> _Moments:
    """Moments of two sets together; sums of squares would lose a small spread to rounding."""
    count = a[0] + b[0]
    share = b[0] / count.clamp(min=1)
    gap = b[1] - a[1]
    return count, a[1] + share * gap, a[2] + b[2] + gap.square() * a[0] * share


def _sums(moments: _Moments) -> Tensor:
    """Count, sum, and sum of squares."""
    count, mean, spread = torch.stack(moments).cpu().double()
    return torch.stack([count, count * mean, spread + count * mean.square()])


@runtime_checkable
class _LogsTemperatures(Protocol):
    """A loss that adds to `temperatures` once it is set."""

    views: tuple[str, ...]
    temperatures: TemperatureMoments | None


def log_temperatures(trainer: Trainer) -> Trainer:
    """Make a trainer log `tau_mean` and `tau_std` wherever it logs its loss, and in evaluation `eval_tau_mean`, ...

    They cover all rows since the last entry, over micro-batches and processes; a loss with several views logs each:
    `anchor/tau_mean`. A step accumulates on the device, and nothing waits for it until the trainer logs.

    Args:
        trainer: a `transformers.Trainer` of a `TrainableLM`; one of its own model, or TRL's, with a
            `robust_loss_func`; or a `SentenceTransformerTrainer` with a `RobustRankingLoss`.

    Returns:
        The same trainer.

    Raises:
        TypeError: a trainer of another model and loss.
        ImportError: transformers is not installed.

    Example:
        >>> import dro_temp as dt, transformers
        >>> from dro_temp.integrations.transformers import TrainableLM, log_temperatures
        >>> config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
        >>> host = dt.hosts.CausalLM(transformers.GPT2LMHeadModel(config), frozen=True)
        >>> tempnet = dt.TempNet.for_logits(99, tau_min=0.1, tau_max=2.0)
        >>> model = TrainableLM(dt.Objective(host, tempnet, dt.KLRobustLoss(rho=2.0)))
        >>> texts = [{"input_ids": x, "labels": x} for x in torch.randint(99, (4, 8))]
        >>> quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
        >>> arguments = transformers.TrainingArguments("runs", max_steps=2, logging_steps=1, **quiet)
        >>> trainer = log_temperatures(transformers.Trainer(model, arguments, train_dataset=texts))
        >>> trainer.callback_handler.callbacks[0].__class__.__name__
        'TemperatureLog'
    """
    moments = _moments_of(trainer)
    # Before all others: those that write the entry are there already, and read it in this order.
    trainer.callback_handler.callbacks.insert(0, _callback(moments))  # type: ignore[attr-defined]
    return trainer


def _moments_of(trainer: Any) -> TemperatureMoments:
    """Those of the loss that the trainer trains with, which adds to them from now on."""
    loss = getattr(trainer, "loss", None)
    losses = list(loss.values()) if isinstance(loss, Mapping) else [loss]
    model = getattr(trainer, "model", None)
    for part in (model, getattr(trainer, "compute_loss_func", None), *losses):
        if isinstance(part, _LogsTemperatures):
            if part.temperatures is None:
                part.temperatures = TemperatureMoments(part.views)
            return part.temperatures
    of_what = "without a model" if model is None else f"of {with_article(type(model))}"
    raise TypeError(
        f"expected a trainer of a TrainableLM, a robust_loss_func or a RobustRankingLoss, received "
        f"{type(trainer).__name__} {of_what}. Write "
        "log_temperatures(transformers.Trainer(TrainableLM(objective), ...))."
    )


def _callback(moments: TemperatureMoments) -> Any:
    base: Any = optional_module("transformers", "whose trainer writes the log", extra="clip").TrainerCallback

    class TemperatureLog(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            moments.clear(training=True)

        def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
            moments.clear(training=False)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            prefix = _prefix(logs)
            if prefix is None:
                return
            values = moments.read(training=not prefix, device=args.device)
            entry = {prefix + name: value for name, value in values.items()}
            logs.update(entry)
            if state.log_history:  # a copy of the entry is there already
                state.log_history[-1].update(entry)

    return TemperatureLog()


def _prefix(logs: dict[str, Any] | None) -> str | None:
    """Empty for an entry of training, "eval_" or the like for one of an evaluation, None for others."""
    if not logs or "train_runtime" in logs:
        return None
    if "loss" in logs:
        return ""
    return next((name.removesuffix("loss") for name in logs if name.endswith("_loss")), None)
