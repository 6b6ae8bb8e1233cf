"""Hooks on modules that several threads run at once, and the hooks that others have put there."""

import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

# torch takes a hook's number and counts on in two steps: two threads could get one number on one module.
_REGISTERING = threading.Lock()
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OURS = __name__.partition(".")[0] + "."


def registered(register: Callable[..., RemovableHandle], hook: Callable[..., Any]) -> RemovableHandle:
    """A forward hook or pre-hook with the keyword arguments of the call.

    Another thread, in the middle of a call, may see the hook without knowing yet (or any more) that it wants keyword
    arguments. So the hook must do nothing where it is given one argument less than it takes.

    Args:
        register: a module's `register_forward_hook` or `register_forward_pre_hook`.
        hook: the hook.
    """
    with _REGISTERING:
        return register(hook, with_kwargs=True)


def hooks_of_others(module: nn.Module, *kinds: str) -> tuple[int, ...]:
    """Numbers of the hooks on a module, this package's own left out: no two hooks of a process have the same.

    Args:
        module: the module.
        *kinds: names of torch's tables of hooks; all that see or change what a call computes, if none.
    """
    return tuple(
        number
        for kind in kinds or _HOOKS
        for number, hook in list(getattr(module, kind).items())
        if not (getattr(hook, "__module__", None) or "").startswith(_OURS)
    )


def is_bare(module: object, *types: type[nn.Module]) -> bool:
    """Whether a module is of one of these types, exactly, and nothing was put around its forward.

    A subclass, a parametrised layer, a wrapped forward or a hook may compute something else, or something more.
    """
    if not isinstance(module, nn.Module) or type(module) not in types:
        return False
    return "forward" not in vars(module) and not hooks_of_others(module)
