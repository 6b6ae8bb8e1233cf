"""Temperatures in a trainer's own log: beside its loss, for TensorBoard, W&B and every other logger it writes to."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from dro_temp import distributed
from dro_temp._checks import with_article
from dro_temp._optional import optional_module

Trainer = TypeVar("Trainer")


class TemperatureMoments:
    """Mean and spread of temperatures per view since they were last read; training and evaluation apart.

    Nothing waits for the device until they are read.
    """

    def __init__(self, views: tuple[str, ...]) -> None:
        self.views = views
        #: Count, sum and sum of squares of distances from a number, and that number; of training, and of evaluation.
        self._sums: dict[bool, dict[str, Tensor]] = {True: {}, False: {}}

    @torch.no_grad()
    def add(self, view: str, tau: Tensor, valid: Tensor | None = None, *, training: bool) -> None:
        """Add a batch of temperatures [n], of which the valid ones count, [n]; None: all do."""
        # Apple's devices have no float64.
        tau = tau.float() if tau.device.type == "mps" else tau.double()
        weight = torch.ones_like(tau) if valid is None else valid.to(tau)
        known = self._sums[training].get(view)
        # About the first batch's mean: in float32 too, a small spread is not lost in the squares.
        middle = (weight * tau).sum() / weight.sum().clamp(min=1) if known is None else known[3]
        gap = tau - middle
        sums = torch.stack([weight.sum(), (weight * gap).sum(), (weight * gap.square()).sum()])
        sums = sums if known is None else known[:3] + sums
        self._sums[training][view] = torch.cat([sums, middle[None]])

    def clear(self, *, training: bool) -> None:
        """Forget the batches so far."""
        self._sums[training] = {}

    def read(self, *, training: bool, device: torch.device) -> dict[str, float]:
        """Means and standard deviations over all processes' rows, then clear. All processes call it together."""
        own, nothing = self._sums[training], torch.zeros(4)
        self.clear(training=training)
        parts = torch.stack([own.get(view, nothing).cpu().double() for view in self.views])
        n, total, squares, middle = parts.unbind(1)
        squares = squares + 2 * middle * total + n * middle.square()
        sums = torch.stack([n, total + n * middle, squares], 1)
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
    loss, model = getattr(trainer, "loss", None), getattr(trainer, "model", None)
    losses = list(loss.values()) if isinstance(loss, Mapping) else [loss]
    parts: list[Any] = [model, getattr(trainer, "compute_loss_func", None), *losses]
    for part in parts:
        if hasattr(part, "temperatures") and hasattr(part, "views"):
            part.temperatures = part.temperatures or TemperatureMoments(part.views)
            # Before all others: those that write the entry are there already, and read it in this order.
            trainer.callback_handler.callbacks.insert(0, _callback(part.temperatures))  # type: ignore[attr-defined]
            return trainer
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
            if not logs or "train_runtime" in logs:
                return
            losses = [""] if "loss" in logs else [x.removesuffix("loss") for x in logs if x.endswith("_loss")]
            if not losses:
                return
            prefix = losses[0]  # empty in training, "eval_" or the like in an evaluation
            values = moments.read(training=not prefix, device=args.device)
            entry = {prefix + name: value for name, value in values.items()}
            logs.update(entry)
            if state.log_history:  # a copy of the entry is there already
                state.log_history[-1].update(entry)

    return TemperatureLog()
