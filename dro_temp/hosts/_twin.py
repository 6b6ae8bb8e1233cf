"""A copy of a module over the same tensors, for trying something out while other threads run the module itself."""

import functools
from collections import OrderedDict
from types import MethodType
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)

_CONTAINERS = (dict, OrderedDict, list, tuple, set)


def twin(module: M, *, keeping: nn.Module | None = None) -> M:
    """A module with parts, modes, hooks and attributes of its own, and the same parameters and buffers.

    Modes that are set, hooks that are added, and layers that a forward swaps are those of the copy alone; what is
    written into a tensor in place is not. Compiled parts are copied uncompiled: their graphs run the original.

    Args:
        module: what is copied, in a time that does not depend on the size of its tensors.
        keeping: a part that the copy shares.
    """
    kept = set() if keeping is None else set(keeping.modules())
    parts = [part for part in module.modules() if part not in kept]
    copies = {id(part): object.__new__(type(part)) for part in parts}
    for part in parts:
        inner = part._modules.get("_orig_mod")
        if inner is not None:
            copies[id(part)] = copies[id(inner)]
    for part in parts:
        if "_orig_mod" not in part._modules:
            own = {name: _over(value, copies) for name, value in vars(part).items()}
            own["_compiled_call_impl"] = None
            object.__setattr__(copies[id(part)], "__dict__", own)
    return copies[id(module)]  # type: ignore[return-value]


def _over(value: Any, copies: dict[int, nn.Module], depth: int = 2) -> Any:
    """The value, with copies in place of the modules that it refers to."""
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if type(value) is MethodType:
        return MethodType(value.__func__, copies.get(id(value.__self__), value.__self__))
    if type(value) is functools.partial:
        args = [_over(x, copies) for x in value.args]
        named = {name: _over(x, copies) for name, x in value.keywords.items()}
        return functools.partial(_over(value.func, copies), *args, **named)
    if type(value) not in _CONTAINERS or depth == 0:
        return value
    if isinstance(value, dict):
        return type(value)((name, _over(x, copies, depth - 1)) for name, x in list(value.items()))
    return type(value)(_over(x, copies, depth - 1) for x in list(value))
