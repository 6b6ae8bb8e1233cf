"""Assertions whose messages name the property, and how many examples a property is tried on."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor, nn

few_examples = settings(max_examples=10, deadline=None)


def assert_same(actual: Any, expected: Any, what: str, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Tensors, or nested structures of them, that are equal up to rounding, with the same dtype and shape."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state."""
    return copy.deepcopy(module.state_dict())


def assert_unchanged(module: nn.Module, before: dict[str, Tensor], what: str) -> None:
    """The module's state is bit for bit what it was."""
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), f"{what}, received another {name}"


def assert_finite_gradients(module: nn.Module) -> None:
    """Every parameter has a finite gradient."""
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"expected a gradient of {name}, received none"
        assert bool(parameter.grad.isfinite().all()), f"expected a finite gradient of {name}"


def assert_refuses(call: Callable[[], object], what: str) -> None:
    """The call raises ValueError."""
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"expected a ValueError {what}, received none")


def assert_compiles(call: Callable[..., Tensor], *args: Any, **inputs: Any) -> None:
    """One graph without breaks, and the same numbers."""
    # The backend only records: what is tested is the graph, and no compiler is needed.
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    expected = call(*args, **inputs)
    assert_same(compiled(*args, **inputs), expected, "compiled", rtol=1.3e-6, atol=1e-5)
    torch.compiler.reset()
