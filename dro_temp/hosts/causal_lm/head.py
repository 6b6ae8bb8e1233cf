"""Where a language model turns hidden states into logits, and what it does to them afterwards."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dro_temp.functional import ScoreTransform
from dro_temp.hosts._hooks import hooks_of_others, registered


@dataclass(frozen=True)
class LmHead:
    """The output embeddings of a causal language model.

    Args:
        module: from [... d] hidden states to [... vocabulary].
        linear: True if the model's logits are `transform(hidden @ weight.T + bias)` and nothing else.
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
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """[vocabulary], or None."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None


@dataclass
class Caught:
    """What a head was given in one forward; empty if it was not called.

    Args:
        hidden: of each call.
        changed: True if a hook of the user put something else in the place of what the head returned.
    """

    hidden: list[Tensor] = field(default_factory=list)
    changed: bool = False

    @property
    def once(self) -> Tensor | None:
        """The hidden states, if the head was called once."""
        return self.hidden[0] if len(self.hidden) == 1 else None


@contextmanager
def catching(head: nn.Module, *, skip: bool = False) -> Iterator[Caught]:
    """Note what the head is given by this thread while the block runs.

    Args:
        head: the module.
        skip: True to hand it the first position only: its output is then of no use.
    """
    caught = Caught()
    compiling = torch.compiler.is_compiling()
    thread = None if compiling else threading.get_ident()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or (thread is not None and threading.get_ident() != thread):
            return None
        name = next(iter(kwargs)) if not args else None
        hidden = kwargs[name] if name is not None else args[0]
        caught.hidden.append(hidden)
        if not skip:
            return None
        first = hidden[..., :1, :]
        return ((first, *args[1:]), kwargs) if name is None else (args, kwargs | {name: first})

    if compiling:  # one thread traces, and cannot take a lock
        handles = [head.register_forward_pre_hook(before, with_kwargs=True)]
    else:
        handles = [registered(head.register_forward_pre_hook, before)]
        if hooks_of_others(head, "_forward_hooks"):
            handles += _watching(head, caught)
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _watching(head: nn.Module, caught: Caught) -> list[RemovableHandle]:
    """Hooks before and behind all others, that compare what the head returned with what they left of it."""
    thread = threading.get_ident()
    returned: list[tuple[int, int]] = []

    def first(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if output is not None and threading.get_ident() == thread:
            returned[:] = [_identity(output)]

    def last(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if output is not None and threading.get_ident() == thread:
            caught.changed |= returned != [_identity(output)]

    foremost = partial(head.register_forward_hook, prepend=True)
    return [registered(foremost, first), registered(head.register_forward_hook, last)]


def _identity(output: Any) -> tuple[int, int]:
    """Another tensor, or this one written to, has another."""
    counted = isinstance(output, Tensor) and not torch.is_inference(output)
    return id(output), output._version if counted else 0


def output_embeddings(model: nn.Module) -> nn.Module:
    """The model's head.

    Raises:
        TypeError: there is none, or the model is not a causal language model.
    """
    name = type(model).__name__
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"expected a decoder-only causal language model, received {name}, an encoder-decoder, whose rows depend "
            "on a second input. Load its decoder alone (AutoModelForCausalLM), or write a HostAdapter of your own."
        )
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    weight = getattr(head, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.dim() == 2
    if not isinstance(head, nn.Module) or not (matrix or _is_packed(head)):
        raise TypeError(
            f"expected a causal language model with one head, get_output_embeddings() with a weight "
            f"[vocabulary, d], received {name}, whose head is {type(head).__name__}. Load the model with "
            "AutoModelForCausalLM, or wrap logits of your own in a HostAdapter."
        )
    return head


def words_of(head: nn.Module) -> int:
    """How many outcomes a head has, also one that packs its weight."""
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2:
        width = getattr(head, "in_features", weight.shape[1])
        if weight.shape[1] == width:
            return len(weight)
    return int(head.out_features)  # type: ignore[arg-type]  # a linear layer that packs its weight


def _is_packed(head: nn.Module) -> bool:
    """Whether a layer is a linear one whose weight is kept in another form, as torch's quantised layers do."""
    sizes = (getattr(head, "in_features", None), getattr(head, "out_features", None))
    return all(isinstance(size, int) for size in sizes)
