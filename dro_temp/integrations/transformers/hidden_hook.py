"""What a model computes for the last position, captured by hooks in its own forward before anything changes it."""

import threading
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dro_temp._autograd import outside_graphs
from dro_temp.hosts._modules import add_hook, foreign_hooks


class LastPosition(NamedTuple):
    """Every sequence's last position in one forward."""

    logits: Tensor  #: as the model returned them, soft-capped or scaled, [n vocabulary]
    hidden: Tensor | None  #: the head's input, [n d]; None if it was not called once, position by position
    positions: int  #: number of positions that the model was given
    by_generate: bool  #: whether a dictionary was asked for, as `generate` does in all forwards of its own


class _Captured:
    """What the forwards of one thread left."""

    last: LastPosition | None = None
    hidden: Tensor | None = None
    head_calls = 0


class _PerThread(threading.local):
    """Several threads may run one model; copies and pickles start empty."""

    def __init__(self) -> None:
        self.captured = _Captured()

    def __reduce__(self) -> tuple[Any, ...]:
        return _PerThread, ()


class HiddenHook:
    """Hooks on a model and its head that hold the last position of a thread's latest forward until it is taken.

    Forwards that record gradients are ignored, so that training is neither slowed nor remembered. The model is not
    kept alive, and of a longer sequence one position alone. It may be wrapped (PEFT), or wrap the one that generates.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        self._threads = _PerThread()
        # After the head, not before it: hooks that change what it is given may be put there later.
        self._handles = [add_hook(head.register_forward_hook, self._after_head)]
        self._after_ids: dict[int, int] = {}  # ids of the hooks after a model, by the module's
        # A wrapper may call what it wraps, its forward without hooks, or have it generate: each gets hooks.
        for module in model.modules():
            if module is model or getattr(module, "get_output_embeddings", lambda: None)() is head:
                after = add_hook(module.register_forward_hook, self._after_model)
                self._after_ids[id(module)] = after.id
                self._handles += [add_hook(module.register_forward_pre_hook, self._before_model), after]

    def take(self) -> LastPosition | None:
        """This thread's latest forward's last position, once; None if there was no forward since."""
        captured = self._captured()
        last, captured.last = captured.last, None
        return last

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._threads = _PerThread()

    @outside_graphs  # the compiler does not know whose attributes these are, and would lose what is written to them
    def _captured(self) -> _Captured:
        return self._threads.captured

    def _before_model(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if kwargs is not None and "logits_processor_args" in kwargs:
            raise ValueError(
                "expected model.generate, received a forward of continuous batching (generate_batch), which calls no "
                "TemperatureLogitsProcessor. Call model.generate(..., logits_processor=[processor]); for texts "
                "without its temperatures, call processor.close() first."
            )
        captured = self._captured()
        captured.hidden, captured.head_calls = None, 0
        if not torch.compiler.is_compiling():
            self._move_last(module)

    def _move_last(self, module: nn.Module) -> None:
        """Hooks that change the logits may be put on the model later: ours goes behind them."""
        own = self._after_ids.get(id(module))
        others = foreign_hooks(module, "_forward_hooks")
        if own is not None and others:
            order = list(module._forward_hooks)  # in one step: other threads add and remove theirs
            if own in order and others[-1] in order[order.index(own) :]:
                with suppress(KeyError):  # closed by another thread meanwhile
                    module._forward_hooks.move_to_end(own)  # type: ignore[attr-defined]

    def _after_head(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if output is None or torch.is_grad_enabled():
            return
        captured = self._captured()
        captured.head_calls += 1
        captured.hidden = _last_of(args[0] if args else next(iter(kwargs.values())))

    def _after_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        logits = None if torch.is_grad_enabled() else _last_of(getattr(output, "logits", None))
        if logits is None:
            return
        captured = self._captured()
        by_generate = kwargs.get("return_dict") is True
        # Guidance runs the model again, for its own purposes, before a step's scores reach the processor.
        if captured.last is not None and captured.last.by_generate and not by_generate:
            return
        hidden = captured.hidden if captured.head_calls == 1 else None
        if hidden is not None and len(hidden) != len(logits):
            hidden = None
        inputs = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        positions = next((x.shape[1] for x in inputs if isinstance(x, Tensor)), 0)
        captured.last = LastPosition(logits, hidden, positions, by_generate)


def _last_of(x: Any) -> Tensor | None:
    """[n k] of [n positions k], without keeping the other positions."""
    if not isinstance(x, Tensor) or x.dim() != 3:
        return None
    last = x.select(1, -1)
    return last if x.shape[1] == 1 else last.clone()
