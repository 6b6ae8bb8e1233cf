"""Working on a user's modules while other threads run them: hooks, copies over the same tensors, unused parameters."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from dro_temp.interfaces import HostAdapter

M = TypeVar("M", bound=nn.Module)

# torch reads a hook's number and increments it in two steps: two threads could get one number on one module.
_REGISTERING = threading.Lock()
_KINDS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def add_hook(register: Callable[..., RemovableHandle], hook: Callable[..., Any]) -> RemovableHandle:
    """Register a forward hook or pre-hook that takes keyword arguments.

    Another thread, in the middle of a call, may run the hook without keyword arguments, before torch has recorded (or
    after it has removed) that it takes them: a hook must do nothing where it gets one argument less than it takes.
    """
    with _REGISTERING:
        return register(hook, with_kwargs=True)


def foreign_hooks(module: nn.Module, *kinds: str) -> tuple[int, ...]:
    """Ids, unique within a process, of the hooks on a module that are not this package's own.

    `kinds` are names of torch's hook tables; by default all that can see or change what a call computes.
    """
    return tuple(
        number
        for kind in kinds or _KINDS
        for number, hook in list(getattr(module, kind).items())
        if not (getattr(hook, "__module__", None) or "").startswith("dro_temp.")
    )


def is_unmodified(module: object, *types: type[nn.Module]) -> bool:
    """Whether a module is exactly of one of these types, with nothing around its forward.

    A subclass, a parametrised layer, a wrapped forward or a hook may compute something else.
    """
    if not isinstance(module, nn.Module) or type(module) not in types:
        return False
    return "forward" not in vars(module) and not foreign_hooks(module)


def shadow_copy(module: M, *, sharing: nn.Module | None = None) -> M:
    """A module with submodules, modes, hooks and attributes of its own, over the same parameters and buffers.

    Modes that are set, hooks that are added and layers that a forward swaps concern the copy alone; writing into a
    tensor in place does not. Compiled submodules are copied uncompiled: their graphs run the original. The submodule
    `sharing` is not copied.
    """
    shared = set() if sharing is None else set(sharing.modules())
    parts = [part for part in module.modules() if part not in shared]
    copies = {id(part): object.__new__(type(part)) for part in parts}
    for part in parts:
        inner = part._modules.get("_orig_mod")
        if inner is not None:
            copies[id(part)] = copies[id(inner)]
    for part in parts:
        if "_orig_mod" not in part._modules:
            attributes = {name: _redirected(value, copies) for name, value in vars(part).items()}
            attributes["_compiled_call_impl"] = None
            object.__setattr__(copies[id(part)], "__dict__", attributes)
    return copies[id(module)]  # type: ignore[return-value]


def _redirected(value: Any, copies: dict[int, nn.Module], depth: int = 2) -> Any:
    """The value, with copies in place of the modules that it refers to."""
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if type(value) is MethodType:
        return MethodType(value.__func__, copies.get(id(value.__self__), value.__self__))
    if type(value) is functools.partial:
        args = [_redirected(x, copies) for x in value.args]
        keywords = {name: _redirected(x, copies) for name, x in value.keywords.items()}
        return functools.partial(_redirected(value.func, copies), *args, **keywords)
    if type(value) not in (dict, OrderedDict, list, tuple, set) or depth == 0:
        return value
    if isinstance(value, dict):
        return type(value)((name, _redirected(x, copies, depth - 1)) for name, x in list(value.items()))
    return type(value)(_redirected(x, copies, depth - 1) for x in list(value))


def freeze_unused(host: HostAdapter, *args: Any, **batch: Any) -> list[str]:
    """Freeze the parameters on which no score depends, such as a caption decoder; return their names.

    They are found by running a batch and checking which parameters get a gradient. On one process they do no harm,
    since optimizers skip what has no gradient; DistributedDataParallel raises over them, so call this before wrapping.

    Args:
        host: the host.
        *args: a batch of two samples or more, as the host takes it.
        **batch: the rest of it.

    Returns:
        The names of the parameters that now have `requires_grad=False`, and had not.

    Example:
        >>> import dro_temp as dt
        >>> image_encoder = torch.nn.Linear(6, 4)
        >>> image_encoder.head = torch.nn.Linear(4, 10)  # its forward does not use it
        >>> host = dt.hosts.TwoTower(image_encoder, torch.nn.Linear(5, 4))
        >>> dt.hosts.freeze_unused(host, torch.randn(2, 6), torch.randn(2, 5))
        ['image_encoder.head.weight', 'image_encoder.head.bias']
    """
    named = {name: p for name, p in host.named_parameters() if p.requires_grad}
    if host.frozen or not named:
        return []
    # A copy over the same parameters: another thread may train the host meanwhile. In eval mode, so that nothing is
    # dropped, no running statistics change, and nothing is gathered: each process finds its own.
    copy = shadow_copy(host).eval()
    with torch.enable_grad():
        scores = [rows.dense_scores for rows in copy(*args, **batch).values()]
        total = torch.stack([s.square().sum() for s in scores]).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    unused = [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]
    for name in unused:
        named[name].requires_grad_(False)
    return unused
