"""What a model makes of the last position: caught by hooks in its own forward, where nobody has changed it yet."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


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


class Tap:
    """Hooks on a model and its head that keep the last position of the latest forward until it is taken.

    Forwards that record gradients are let pass, so that training is neither slowed nor remembered. The model is not
    kept alive, and of a longer sequence one position alone.

    Args:
        model: the model; it may wrap the one that generates (PEFT), or be wrapped.
        head: its output embeddings.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        self._last: LastPosition | None = None
        self._hidden: Tensor | None = None
        self._head_calls = 0
        self._handles = [head.register_forward_pre_hook(self._before_head, with_kwargs=True)]
        # A wrapper may call what it wraps, its forward without hooks, or have it generate: all of them are heard.
        for module in model.modules():
            if module is model or _head_of(module) is head:
                self._handles += [
                    module.register_forward_pre_hook(self._before),
                    module.register_forward_hook(self._after, with_kwargs=True),
                ]

    def __enter__(self) -> "Tap":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self) -> LastPosition | None:
        """The latest forward's last position, once; None if there was no forward since."""
        last, self._last = self._last, None
        return last

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._last = self._hidden = None

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._hidden, self._head_calls = None, 0

    def _before_head(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            return
        hidden = args[0] if args else next(iter(kwargs.values()))
        self._head_calls += 1
        self._hidden = _last_of(hidden)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        logits = None if torch.is_grad_enabled() else _last_of(getattr(output, "logits", None))
        if logits is None:
            return
        by_generate = kwargs.get("return_dict") is True
        # Guidance runs the model again, for its own purposes, before a step's scores are ours to see.
        if self._last is not None and self._last.by_generate and not by_generate:
            return
        hidden = self._hidden if self._head_calls == 1 else None
        if hidden is not None and len(hidden) != len(logits):
            hidden = None
        self._last = LastPosition(logits, hidden, _positions(args, kwargs), by_generate)


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
