"""A robust loss as the `compute_loss_func` of trainers that run the model themselves."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp._checks import check_kind
from dro_temp.hosts.labels import labelled_rows
from dro_temp.integrations._temperature_log import TemperatureMoments
from dro_temp.interfaces import RobustLoss, TemperaturePredictor
from dro_temp.state import staged_modules


def robust_loss_func(
    predictor: TemperaturePredictor, loss: RobustLoss, *, shifted: bool = True
) -> Callable[..., Tensor]:
    """A `compute_loss_func` for `transformers.Trainer`, and for trainers made of it, as TRL's.

    It needs the model's logits in memory; `TrainableLM` does not. A predictor with parameters must be a submodule of
    the model, so that it is moved, trained and saved with it: write `model.tempnet = tempnet` before the trainer is
    built. With PEFT, write that before adapters are added, and `LoraConfig(modules_to_save=["tempnet"])`, since its
    checkpoints hold only adapters and what is named there. The predictor is then `model.tempnet`, the copy that PEFT
    trains.

    Args:
        predictor: reads the logits or nothing: `TempNet.for_logits`, `ConstantTemperature`; or PEFT's wrapper of one.
        loss: without memory.
        shifted: True if position t predicts label t + 1, as almost all models do.

    Returns:
        `f(outputs, labels, num_items_in_batch)`, the loss.

    Raises:
        ValueError: a predictor that reads hidden states or sample numbers, or memory of samples.

    Example:
        >>> import dro_temp as dt, transformers
        >>> from dro_temp.integrations.transformers import robust_loss_func
        >>> config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
        >>> model = transformers.GPT2LMHeadModel(config)
        >>> model.tempnet = dt.TempNet.for_logits(99, tau_min=0.1, tau_max=2.0)
        >>> compute_loss_func = robust_loss_func(model.tempnet, dt.KLRobustLoss(rho=3.0))
        >>> tokens = torch.randint(99, (2, 8))
        >>> compute_loss_func(model(tokens), tokens).backward()
    """
    return _RobustLossFunc(predictor, loss, shifted)


class _RobustLossFunc:
    def __init__(self, predictor: TemperaturePredictor, loss: RobustLoss, shifted: bool) -> None:
        predictor = _unwrapped(predictor)
        check_kind("predictor", predictor, TemperaturePredictor, "The order is (predictor, loss).")
        check_kind("loss", loss, RobustLoss, "The order is (predictor, loss).")
        unseen = predictor.reads & {"features", "index"}
        memory = staged_modules([*predictor.modules(), *loss.modules()])
        if unseen or memory:
            what = f"reads {sorted(unseen)}" if unseen else f"remembers samples ({type(memory[0]).__name__})"
            raise ValueError(
                f"expected a predictor and a loss of logits alone, received {type(predictor).__name__} with "
                f"{type(loss).__name__}, which {what}: a compute_loss_func sees no more than the model's outputs. "
                "Use TempNet.for_logits(...), or train TrainableLM(Objective(hosts.CausalLM(model), ...))."
            )
        self.predictor, self.loss, self.shifted = predictor, loss, shifted
        self._trained = [p for p in predictor.parameters() if p.requires_grad]
        self._window: Tensor | int | None = None
        self.views = ("token",)
        self.temperatures: TemperatureMoments | None = None  # for `log_temperatures`
        if self._trained:
            predictor.register_state_dict_post_hook(_warn_beside_adapters)  # type: ignore[no-untyped-call]

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Sum of the rows' values over the number of labels in the accumulation window."""
        if labels is None:
            raise ValueError(
                "expected labels in every batch, received none. Collate with "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)."
            )
        if torch.is_grad_enabled():
            self._check_trained(num_items_in_batch)
        logits, first = outputs.logits, int(self.shifted)
        scores = logits[:, : logits.shape[1] - first].flatten(0, 1)
        advice = "Use the tokenizer that the model was trained with; label what is not to count -100."
        rows = labelled_rows(scores, labels[:, first:].flatten().to(scores.device), None, advice=advice)
        evaluated = self.loss.evaluate(rows, self.predictor)
        if self.temperatures is not None:
            self.temperatures.add("token", evaluated.tau, rows.valid, training=torch.is_grad_enabled())
        total: Tensor = evaluated.values.sum()
        count = rows.valid.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        return total / count.to(total.device).clamp(min=1)

    def _check_trained(self, window: Tensor | int | None) -> None:
        """Raise where the predictor is not trained: a trainer clears all gradients of its model after each step."""
        starts = window is not None and window is not self._window
        self._window = window
        frozen = any(not p.requires_grad for p in self._trained)
        if frozen or (starts and any(p.grad is not None for p in self._trained)):
            received = "was frozen" if frozen else "kept its gradients after a step"
            raise RuntimeError(
                f"expected a predictor that the trainer trains with its model, received one that {received}. Write "
                "model.tempnet = tempnet before the trainer is made. With PEFT, name it in "
                "LoraConfig(modules_to_save=['tempnet']) and pass model.tempnet; put on the model after adapters, it "
                "is trained and not saved."
            )


def _warn_beside_adapters(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """PEFT filters the state that it saves: warn if the predictor will not pass."""
    if "modules_to_save" not in prefix and any(name.startswith("base_model.model.") for name in state):
        warnings.warn(
            f"expected a predictor that PEFT saves with its adapters, received one at {prefix.rstrip('.')!r}, which "
            "its checkpoints leave out: a run that resumes would start it afresh. Write model.tempnet = tempnet before "
            "adapters are added, LoraConfig(modules_to_save=['tempnet']), and pass model.tempnet.",
            stacklevel=2,
        )


def _unwrapped(predictor: Any) -> Any:
    """The copy that PEFT trains, where a predictor was named in `modules_to_save`."""
    copies = getattr(predictor, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict):
        return predictor
    active = predictor.active_adapters
    if len(active) != 1 or active[0] not in copies:
        raise ValueError(
            f"expected a predictor under one active adapter, received one with {', '.join(copies)}, of which "
            f"{', '.join(active) or 'none'} is active. Call model.set_adapter('default') first."
        )
    return copies[active[0]]
