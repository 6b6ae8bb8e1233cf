"""Code that `torch.compile` is to leave alone, and sizes that it is not to take for constants."""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def outside_graphs(function: F) -> F:
    """As `torch.compiler.disable`, which loads the whole compiler when it decorates: two seconds of every import.

    Nothing can be compiling before it is loaded.
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


def log_of_size(size: int, like: Tensor) -> float | Tensor:
    """Log of a size, or of 1 if that is larger.

    In a graph it is a scalar with the dtype of `like`: `math.log` would make the graph one for this very size.
    """
    if torch.compiler.is_compiling():
        return like.new_full((), size).clamp(min=1).log()
    return math.log(max(size, 1))


def constant_in_graphs(function: F) -> F:
    """As `torch.compiler.assume_constant_result`, which loads the whole compiler when it decorates.

    For what a graph may take as it is when the graph is made: what this machine can do, say.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
