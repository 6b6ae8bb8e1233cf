"""What a model makes of the last position: caught by hooks in its own forward, before anything has changed it."""

import threading
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dro_temp._compiler import outside_graphs
from dro_temp.hosts._modules import add_hook, foreign_hooks


class LastPosition(NamedTuple):
    """Every sequence's last position in one forward.

    Args:
        logits: what the model returned, soft-capped or scaled, [n vocabulary].
        hidden: what its head was given, [n d]; None if the head was not called once, position by position.
        positions: how many positions the model was given.
        by_generate: True if the forward was asked for a dictionary, as `generate` asks for all of its own.
    """

    logits: Tensor
    hidden: Tensor | None
    positions: int
    by_generate: bool


class _Heard:
    """What one thread's forwards left."""

    last: LastPosition | None = None
    hidden: Tensor | None = None
    head_calls = 0


class _OfThreads(threading.local):
    """A thread's own, as several of them may run one model; copies and pickles start empty."""

    def __init__(self) -> None:
        self.heard = _Heard()

    def __reduce__(self) -> tuple[Any, ...]:
        return _OfThreads, ()


class Tap:
    """Hooks on a model and its head that keep the last position of a thread's latest forward until it takes it.

    Forwards that record gradients are let pass, so that training is neither slowed nor remembered. The model is not
    kept alive, and of a longer sequence one position alone.

    Args:
        model: the model; it may wrap the one that generates (PEFT), or be wrapped.
        head: its output embeddings.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        self._threads = _OfThreads()
        # After the head, not before it: hooks that change what it is given may be put there later.
        self._handles = [add_hook(head.register_forward_hook, self._after_head)]
        self._after_hooks: dict[int, int] = {}  # their numbers, by the modules'
        # A wrapper may call what it wraps, its forward without hooks, or have it generate: all of them are heard.
        for module in model.modules():
            if module is model or _head_of(module) is head:
                after = add_hook(module.register_forward_hook, self._after)
                self._after_hooks[id(module)] = after.id
                self._handles += [add_hook(module.register_forward_pre_hook, self._before), after]

    def __enter__(self) -> "Tap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self) -> LastPosition | None:
        """This thread's latest forward's last position, once; None if there was no forward since."""
        heard = self._heard()
        last, heard.last = heard.last, None
        return last

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._threads = _OfThreads()

    def _heard(self) -> _Heard:
        # The compiler does not know whose attributes these are, and would lose what is written to them.
        return _of_this_thread(self) if torch.compiler.is_compiling() else self._threads.heard

    def _before(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if kwargs is not None and "logits_processor_args" in kwargs:
            raise ValueError(
                "expected model.generate, received a forward of continuous batching (generate_batch), which calls no "
                "TemperatureLogitsProcessor. Call model.generate(..., logits_processor=[processor]); for texts "
                "without its temperatures, call processor.close() first."
            )
        heard = self._heard()
        heard.hidden, heard.head_calls = None, 0
        if not torch.compiler.is_compiling():
            self._stay_last(module)

    def _stay_last(self, module: nn.Module) -> None:
        """Hooks that change the logits may be put on the model later: ours goes behind them."""
        own = self._after_hooks.get(id(module))
        others = foreign_hooks(module, "_forward_hooks")
        if own is not None and others:
            order = list(module._forward_hooks)  # in one step: other threads add and remove theirs
            if own in order and others[-1] in order[order.index(own) :]:
                with suppress(KeyError):  # closed by another thread meanwhile
                    module._forward_hooks.move_to_end(own)  # type: ignore[attr-defined]

    def _after_head(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if output is None or torch.is_grad_enabled():
            return
        hidden = args[0] if args else next(iter(kwargs.values()))
        heard = self._heard()
        heard.head_calls += 1
        heard.hidden = _last_of(hidden)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        logits = None if torch.is_grad_enabled() else _last_of(getattr(output, "logits", None))
        if logits is None:
            return
        heard = self._heard()
        by_generate = kwargs.get("return_dict") is True
        # Guidance runs the model again, for its own purposes, before a step's scores are ours to see.
        if heard.last is not None and heard.last.by_generate and not by_generate:
            return
        hidden = heard.hidden if heard.head_calls == 1 else None
        if hidden is not None and len(hidden) != len(logits):
            hidden = None
        heard.last = LastPosition(logits, hidden, _positions(args, kwargs), by_generate)


@outside_graphs
def _of_this_thread(tap: Tap) -> _Heard:
    return tap._threads.heard


def _head_of(module: nn.Module) -> Any:
    find = getattr(module, "get_output_embeddings", None)
    return find() if callable(find) else None


def _last_of(x: Any) -> Tensor | None:
    """[n k] of [n positions k], without keeping the other positions."""
    if not isinstance(x, Tensor) or x.dim() != 3:
        return None
    last = x.select(1, -1)
    return last if x.shape[1] == 1 else last.clone()


def _positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    given = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    return next((x.shape[1] for x in given if isinstance(x, Tensor)), 0)
