"""Training with transformers' Trainer: an objective as its model, or a robust loss as its `compute_loss_func`."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._checks import check_kind
from dro_temp.hosts import CausalLM
from dro_temp.hosts.labels import IGNORE, labelled_rows
from dro_temp.integrations._temperature_log import TemperatureMoments
from dro_temp.interfaces import HostAdapter, RobustLoss, TemperaturePredictor
from dro_temp.objective import Objective
from dro_temp.state import staged_modules

_HOST = "objective.host."
_OF_THE_MODEL = {
    "config",
    "generation_config",
    "get_input_embeddings",  # to which the Trainer adds noise (neftune_noise_alpha)
    "gradient_checkpointing_enable",
    "activation_checkpointing_enable",
}


class TrainableLM(nn.Module):
    r"""An `Objective` over a causal language model, as a model for `transformers.Trainer`.

    The loss of a micro-batch is the sum of its rows' values over the number of labels in the whole accumulation
    window, of all processes if `average_tokens_across_devices`: several small batches train as one large one.
    With a risk (`Objective(..., risk=RecordedRisk(risk, len(dataset)))` for one over texts) each of them has a worst or
    best case of its own, and they count by their labels.
    Evaluation returns `eval_loss`, and predictions `(values, tau)`, [batch length] each, for `compute_metrics`:
    the loss and the temperature of the token at that place, -100 where none was predicted. Logits are not kept.

    A checkpoint holds what is trained. The weights of a frozen host, or those under an adapter, are left out:
    to resume, build the objective from the same pretrained model.

    Args:
        objective: over a `hosts.CausalLM`.

    Raises:
        TypeError: anything else.

    Example:
        >>> import dro_temp as dt, transformers
        >>> from dro_temp.integrations.transformers import TrainableLM
        >>> config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
        >>> host = dt.hosts.CausalLM(transformers.GPT2LMHeadModel(config), frozen=True)
        >>> tempnet = dt.TempNet.for_logits(99, tau_min=0.1, tau_max=2.0)
        >>> model = TrainableLM(dt.Objective(host, tempnet, dt.KLRobustLoss(rho=3.0)))
        >>> tokens = torch.randint(99, (2, 8))
        >>> model(tokens, labels=tokens)["loss"].backward()
        >>> {name.partition(".")[2].partition(".")[0] for name in model.state_dict()}
        {'predictors'}
    """

    #: The Trainer passes `num_items_in_batch`, and leaves the scaling of an accumulation window to the loss.
    accepts_loss_kwargs = True
    main_input_name = "input_ids"
    _keys_to_ignore_on_save = None

    def __init__(self, objective: Objective) -> None:
        check_kind(
            "objective", objective, Objective, "Write Objective(hosts.CausalLM(model), tempnet, loss)."
        )
        check_kind("objective.host", objective.host, CausalLM, "Wrap the model: hosts.CausalLM(model).")
        super().__init__()
        self.objective = objective
        # What is frozen only later was trained before: its weights are in no other file.
        self._never_trained = _untrained(objective.host)
        # Functions, not methods: torch marks what it is given, and copies and pickles keep it.
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_do_not_miss)  # type: ignore[no-untyped-call]
        self.views = objective.host.views
        self.temperatures: TemperatureMoments | None = None  # for `log_temperatures`
        ignored = objective._ddp_params_and_buffers_to_ignore
        self._ddp_params_and_buffers_to_ignore = [f"objective.{name}" for name in ignored]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        index: Any = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Any,
    ) -> dict[str, Tensor]:
        """The loss, and, in evaluation, each token's value and temperature.

        Args:
            input_ids: [batch length].
            attention_mask: [batch length], 0 at padding.
            labels: [batch length], -100 where nothing is to be predicted.
            position_ids: handed to the model.
            index: [batch] number of each text in the data set, for parts that remember samples.
            num_items_in_batch: number of labels to divide by; those of this batch if None.
            **inputs: whatever else the model takes. The Trainer drops columns that this signature does not name:
                pass remove_unused_columns=False.

        Raises:
            ValueError: no labels, labels at padding, or labels that were shifted already.
        """
        if labels is None or "shift_labels" in inputs:
            received = "none" if labels is None else "shift_labels"
            raise ValueError(
                f"expected labels, unshifted, in every batch, received {received}. Collate with "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False), and leave out label_smoothing_factor (at 0), "
                "compute_loss_func and context parallelism, which take the labels away: a robust loss has no smoothed "
                "labels of tokens."
            )
        if attention_mask is not None and not torch.compiler.is_compiling():
            wrong = (labels != IGNORE) & (attention_mask == 0)
            if bool(wrong[:, 1:].any()):
                raise ValueError(
                    f"expected labels of {IGNORE} at padding, received {int(wrong[:, 1:].sum())} others where "
                    "attention_mask is 0: the Trainer would count them. Collate with "
                    "DataCollatorForLanguageModeling(tokenizer, mlm=False), or write "
                    f"labels.masked_fill(attention_mask == 0, {IGNORE})."
                )
        inputs.update({} if position_ids is None else {"position_ids": position_ids})
        inputs.update({} if index is None else {"index": index})
        # An objective makes up for data parallel training's mean over processes, and so does the Trainer.
        processes, items = distributed.world_size() if self.training else 1, num_items_in_batch
        count = None if items is None else torch.as_tensor(items).clamp(min=1) * processes
        risks = bool(self.objective.risks)
        output = self.objective(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            count=None if risks else count,
            **inputs,
        )
        values, tau = output.values["token"], output.tau["token"]
        first = int(self._host.shifted)
        counted = labels[:, first:] != IGNORE
        loss = output.loss
        if risks and self.training and count is not None:
            own = distributed.sum_over_processes(counted.sum())
            loss = loss * (own / count.to(own.device))
        if self.temperatures is not None and not torch.compiler.is_compiling():
            self.temperatures.add("token", tau, counted.flatten(), training=self.training)
        if self.training:
            return {"loss": loss}
        # [batch length], each row's number at the label that it predicts.
        values, tau = (x.reshape(counted.shape).masked_fill(~counted, IGNORE) for x in (values, tau))
        values, tau = (nn.functional.pad(x, (first, 0), value=IGNORE) for x in (values, tau))
        return {"loss": loss, "values": values, "tau": tau}

    @property
    def _host(self) -> CausalLM:
        host = self.objective.host
        assert isinstance(host, CausalLM)
        return host

    @property
    def loss_type(self) -> str | None:
        """Read by the Trainer: whether the first label of a sequence counts."""
        return "ForCausalLM" if self._host.shifted else None

    def __getattr__(self, name: str) -> Any:
        """What the Trainer reads of a language model, and calls on it, is the language model's own."""
        return getattr(self._host.model, name) if name in _OF_THE_MODEL else super().__getattr__(name)

    def add_model_tags(self, tags: Any) -> None:
        """Called by TRL's trainers, which compute a loss of their own from the model's parts, bypassing the objective.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"expected a trainer that takes the model's loss, received one of TRL ({tags}), which computes its own and "
            "would not train the objective. Write transformers.Trainer(TrainableLM(objective), ...), or "
            "SFTTrainer(language_model, compute_loss_func=robust_loss_func(tempnet, loss))."
        )


# The weights of a frozen host would be written again at every checkpoint, and safetensors refuses a tensor that has
# two names, as a head has that is tied to the embeddings.


def _untrained(host: HostAdapter) -> set[str]:
    """Names of what a host does not train."""
    names = {name for name, p in host.named_parameters(remove_duplicate=False) if not p.requires_grad}
    if host.frozen:
        names |= {name for name, _ in host.named_buffers(remove_duplicate=False)}
    return {_HOST + name for name in names}


def _left_out(module: TrainableLM) -> set[str]:
    """Names that are not saved: of host weights that were never trained, and second names of one tensor."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    seconds = {name for name, p in named if first.setdefault(id(p), name) != name}
    return (module._never_trained & _untrained(module.objective.host)) | seconds


def _leave_out(module: TrainableLM, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in _left_out(module):
        state.pop(prefix + name, None)


def _do_not_miss(module: TrainableLM, keys: Any) -> None:
    left_out = _left_out(module)
    # Inside another module, names come with its prefix.
    keys.missing_keys[:] = [k for k in keys.missing_keys if k[max(k.find("objective"), 0) :] not in left_out]


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
