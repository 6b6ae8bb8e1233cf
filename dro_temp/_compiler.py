"""Code that `torch.compile` is to leave alone."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def outside_graphs(function: F) -> F:
    """As `torch.compiler.disable`, which loads the whole compiler when it decorates: two seconds of every import.

    Nothing can be compiling before somebody has loaded it.
    """
    disabled: list[Any] = []

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            if not disabled:
                disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
            return disabled[0](*args, **kwargs)
        return function(*args, **kwargs)

    # What the compiler looks for: it breaks the graph before the call, and does not look inside.
    wrapper._torchdynamo_disable = True  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]
