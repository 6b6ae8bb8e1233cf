"""The head of a causal language model: what it computes, its input in a forward, and whether either has changed.

The library speaks of a head in four ways:

- `predictors.HeadShape`: its sizes alone, by which a saved TempNet recognises the model that it was made for;
- `hosts.ModelHead` (here): the layer as it was found in a model, with what the model does to its output;
- `FrozenHead`: its weights, fixed, with a predictor's projection of the logits folded into them;
- `integrations.transformers.head_temperatures.HeadTemperatures`: a predictor bound to a `ModelHead`, which gives the
  rows of generation their temperatures through a `FrozenHead`.
"""

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dro_temp.functional import ScoreTransform
from dro_temp.hosts._modules import add_hook, foreign_hooks


@dataclass(frozen=True)
class ModelHead:
    """The output embeddings of a causal language model.

    Args:
        module: from [... d] hidden states to [... vocabulary].
        linear: True if the model's logits are exactly `transform(hidden @ weight.T + bias)`.
        transform: what the model does to the head's output: `SoftCap`, `Scale`, or None for nothing.
        skippable: True if the model runs when its head is handed one position only, so that logits which are
            not read are not computed.
    """

    module: nn.Module
    linear: bool
    transform: ScoreTransform | None = None
    skippable: bool = False

    @property
    def weight(self) -> Tensor:
        """[vocabulary d]; of a linear head."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """[vocabulary], or None."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None


def output_embeddings(model: nn.Module) -> nn.Module:
    """The model's head."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise TypeError(
            f"expected a decoder-only causal language model, received {type(model).__name__}, an encoder-decoder, "
            "whose rows depend on a second input. Load its decoder alone (AutoModelForCausalLM), or write a "
            "HostAdapter of your own."
        )
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    weight = getattr(head, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.dim() == 2
    # A quantised layer keeps its weight in another form.
    packed = all(isinstance(getattr(head, size, None), int) for size in ("in_features", "out_features"))
    if not isinstance(head, nn.Module) or not (matrix or packed):
        raise TypeError(
            f"expected a causal language model with one head, get_output_embeddings() with a weight "
            f"[vocabulary, d], received {type(model).__name__}, whose head is {type(head).__name__}. Load the model "
            "with AutoModelForCausalLM, or wrap logits of your own in a HostAdapter."
        )
    return head


def outcomes_of(head: nn.Module) -> int:
    """Size of a head's vocabulary."""
    weight: Any = getattr(head, "weight", None)
    plain = isinstance(weight, Tensor) and weight.dim() == 2
    if plain and weight.shape[1] == getattr(head, "in_features", weight.shape[1]):
        return len(weight)
    return int(head.out_features)  # type: ignore[arg-type]  # a linear layer that packs its weight


def config_values(model: nn.Module) -> dict[str, Any]:
    """What the configurations of the model and of its text part hold."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return {} if config is None else {**vars(config), **vars(text)}


class Captured(NamedTuple):
    """What went through a head in one forward of its model."""

    output: Any  #: of the model
    hidden: Tensor | None  #: the head's input; None if it was not called exactly once
    called: bool  #: whether it was called at all
    changed: bool  #: whether a user's hook replaced what the head returned


def capture(head: nn.Module, run: Callable[[], Any], *, skip: bool = False) -> Captured:
    """Call `run`, which runs the model, and capture the input of its head, in this thread.

    With `skip` the head is passed the first position only: its output is not needed.
    """
    inputs: list[Tensor] = []
    compiling = torch.compiler.is_compiling()
    thread = None if compiling else threading.get_ident()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or (thread is not None and threading.get_ident() != thread):
            return None
        inputs.append(args[0] if args else next(iter(kwargs.values())))
        if not skip:
            return None
        first = inputs[-1][..., :1, :]
        return ((first, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): first})

    changed: list[bool] = []
    if compiling:  # one thread traces, and cannot take a lock
        handles = [head.register_forward_pre_hook(before, with_kwargs=True)]
    else:
        handles = [add_hook(head.register_forward_pre_hook, before)]
        if head._forward_hooks and foreign_hooks(head, "_forward_hooks"):
            handles += _compare_outputs(head, changed)
    try:
        output = run()
    finally:
        for handle in handles:
            handle.remove()
    return Captured(output, inputs[0] if len(inputs) == 1 else None, bool(inputs), any(changed))


def _compare_outputs(head: nn.Module, changed: list[bool]) -> list[RemovableHandle]:
    """Hooks before and after all others: what the head returned, against what these left of it."""
    thread = threading.get_ident()
    returned: list[tuple[int, int]] = []

    def first(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if output is not None and threading.get_ident() == thread:
            returned[:] = [_identity(output)]

    def last(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if output is not None and threading.get_ident() == thread:
            changed.append(returned != [_identity(output)])

    foremost = partial(head.register_forward_hook, prepend=True)
    return [add_hook(foremost, first), add_hook(head.register_forward_hook, last)]


def _identity(output: Any) -> tuple[int, int]:
    """Differs for another tensor, and for this one once it is written to."""
    counted = isinstance(output, Tensor) and not torch.is_inference(output)
    return id(output), output._version if counted else 0


class HeadSnapshot:
    """All that trial runs of a model depend on: its head, what wraps it, and numbers that may go into its logits."""

    def __init__(self, model: nn.Module) -> None:
        head = output_embeddings(model)
        around = (m for m in model.modules() if m is not head and any(part is head for part in m.modules()))
        modules = [head, *around]
        self._modules = tuple(map(weakref.ref, modules))
        self._state = _state(model, modules)

    def is_outdated(self, model: nn.Module) -> bool:
        """Whether trial runs might come out differently now."""
        modules = [module for reference in self._modules if (module := reference()) is not None]
        if not modules or len(modules) < len(self._modules) or output_embeddings(model) is not modules[0]:
            return True
        return _state(model, modules) != self._state

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles belong to another model, of which nothing is known yet."""
        return {"_modules": (), "_state": ()}


def _state(model: nn.Module, modules: list[nn.Module]) -> tuple[Any, ...]:
    head, *around = modules
    weight = getattr(head, "weight", None)
    shape = (weight.shape, weight.dtype) if isinstance(weight, Tensor) else type(weight)
    # Hooks after the head are watched in each forward.
    hooks = foreign_hooks(head, "_forward_pre_hooks", "_backward_pre_hooks", "_backward_hooks")
    # The type, since a layer that is parametrised keeps its identity.
    of_head = type(head), id(vars(head).get("forward")), shape, hooks
    of_others = [
        (
            id(vars(m).get("forward")),
            foreign_hooks(m, "_forward_hooks"),
            # Some models keep a scale as an attribute. Integers may be counters, which change with every forward.
            {name: x for name, x in vars(m).items() if type(x) is float},
        )
        for m in around
    ]
    numbers = {name: x for name, x in config_values(model).items() if type(x) in (int, float)}
    return of_head, of_others, numbers
