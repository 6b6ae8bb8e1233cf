"""Temperatures in a trainer's own log: beside its loss, for TensorBoard, W&B and all others that it writes to."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from dro_temp._checks import with_article
from dro_temp._optional import optional_module
from dro_temp.integrations._temperatures import TemperatureMoments

Trainer = TypeVar("Trainer")


def log_temperatures(trainer: Trainer) -> Trainer:
    """Let a trainer log `tau_mean` and `tau_std` wherever it logs its loss, and in evaluation `eval_tau_mean`, ...

    They are those of all rows since the last entry, over micro-batches and processes; where a loss has several views,
    of each: `anchor/tau_mean`. In a step sums are added up where the temperatures are, and nothing waits for the
    device until the trainer logs.

    Args:
        trainer: a `transformers.Trainer` of a `TrainableLM`; one of its own model, or TRL's, with a
            `robust_loss_func`; or a `SentenceTransformerTrainer` with a `RobustRankingLoss`.

    Returns:
        The same trainer.

    Raises:
        TypeError: a trainer of something else.
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
    sums = _sums_of(trainer)
    # Before all others: those that write the entry are there already, and read it in this order.
    trainer.callback_handler.callbacks.insert(0, _callback(sums))  # type: ignore[attr-defined]
    return trainer


def _sums_of(trainer: Any) -> TemperatureMoments:
    """Of what the trainer's loss comes from, which begins to add up."""
    loss = getattr(trainer, "loss", None)
    losses = list(loss.values()) if isinstance(loss, Mapping) else [loss]
    parts = [getattr(trainer, "model", None), getattr(trainer, "compute_loss_func", None), *losses]
    for part in parts:
        if isinstance(part, _LogsTemperatures):
            if part.temperatures is None:
                part.temperatures = TemperatureMoments(part.views)
            return part.temperatures
    model = "without a model" if parts[0] is None else f"of {with_article(type(parts[0]))}"
    raise TypeError(
        f"expected a trainer of a TrainableLM, a robust_loss_func or a RobustRankingLoss, received "
        f"{type(trainer).__name__} {model}. Write "
        "log_temperatures(transformers.Trainer(TrainableLM(objective), ...))."
    )


@runtime_checkable
class _LogsTemperatures(Protocol):
    """What adds up temperatures once it is given sums."""

    views: tuple[str, ...]
    temperatures: TemperatureMoments | None


def _callback(sums: TemperatureMoments) -> Any:
    base: Any = optional_module("transformers", "whose trainer writes the log", extra="clip").TrainerCallback

    class TemperatureLog(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            sums.clear(training=True)

        def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
            sums.clear(training=False)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            prefix = _prefix(logs)
            if prefix is None:
                return
            read = sums.read(training=not prefix, device=args.device)
            entry = {prefix + name: value for name, value in read.items()}
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
