"""What closed-form gradients cannot do, said clearly."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_INSTEAD = "Build the loss with impl='eager', which is ordinary autograd and holds the score matrix."


def refuse_transforms() -> None:
    """Raise under `torch.func` transforms."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "expected a streaming loss outside torch.func transforms (grad, vmap, jvp), received a call inside "
            f"one: its gradients are formed in closed form, in its own sweep. {_INSTEAD}"
        )


def refuse_second_derivative(of: str = "a streaming loss", instead: str = _INSTEAD) -> None:
    """Raise in a backward that is itself recorded."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"expected a first derivative of {of}, received create_graph=True: gradients that are formed block by "
            f"block carry no graph. {instead}"
        )


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward whose products keep their precision, wherever it is called."""

    @functools.wraps(backward)
    def exact(ctx: Any, *grads: Tensor) -> Any:
        with torch.autocast(grads[0].device.type, enabled=False):
            return backward(ctx, *grads)

    return exact
