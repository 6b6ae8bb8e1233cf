"""Assertions whose messages name the property, and how many examples a property is tried on."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import Phase, settings
from torch import Tensor, nn

#: The first failure serves: Hypothesis looks for no simpler one, since most examples are seeds.
few_examples = settings(max_examples=10, deadline=None, phases=[Phase.generate], report_multiple_bugs=False)


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


def assert_writes_nothing(module: nn.Module, *args: Any, **inputs: Any) -> None:
    """A second forward gives the same; without gradients and in evaluation, too, the state stays as it was."""
    before = state_of(module)
    assert_same(module(*args, **inputs), module(*args, **inputs), "a second forward, and the first")
    with torch.no_grad():
        module(*args, **inputs)
    module.eval()(*args, **inputs)
    assert_unchanged(module, before, "expected a forward to write nothing")


def assert_finite_gradients(module: nn.Module) -> None:
    """Every parameter has a finite gradient."""
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"expected a gradient of {name}, received none"
        assert parameter.grad.isfinite().all(), f"expected a finite gradient of {name}"


def assert_compiles(call: Callable[..., Tensor], *args: Any, **inputs: Any) -> None:
    """One graph without breaks, and the same numbers."""
    # The backend only records: what is tested is the graph, and no compiler is needed.
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    assert_same(compiled(*args, **inputs), call(*args, **inputs), "compiled", rtol=1.3e-6, atol=1e-5)
    torch.compiler.reset()
