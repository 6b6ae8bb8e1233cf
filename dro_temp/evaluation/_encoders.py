"""Encode functions as they are: a module, a method of one, or any function."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

#: From a batch of inputs to vectors [n d].
Encode: TypeAlias = Callable[..., Tensor]


def modules_behind(*encode: Encode) -> list[nn.Module]:
    """The modules that these functions are, or are methods of."""
    owners = (f if isinstance(f, nn.Module) else getattr(f, "__self__", None) for f in encode)
    return [owner for owner in owners if isinstance(owner, nn.Module)]


def encoded(encode: Encode, inputs: Any) -> Tensor:
    """Vectors of a batch, which is moved to the encoder's device first.

    A function that takes nothing but keywords (`HFDualEncoder.encode_text`) gets a mapping's entries as keywords;
    any other gets the batch as it is.
    """
    parameters = (p for module in modules_behind(encode) for p in module.parameters())
    device = next((p.device for p in parameters), None)
    if isinstance(inputs, Mapping):
        moved = {name: _moved(value, device) for name, value in inputs.items()}
        return encode(**moved) if _keywords_only(encode) else encode(moved)
    return encode(_moved(inputs, device))


def _moved(value: Any, device: torch.device | None) -> Any:
    return value.to(device) if isinstance(value, Tensor) and device is not None else value


def _keywords_only(encode: Encode) -> bool:
    kinds = {p.kind for p in inspect.signature(encode).parameters.values()}
    return kinds <= {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
