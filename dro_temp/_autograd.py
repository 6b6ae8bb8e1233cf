"""Autograd beside PyTorch's own: closed-form gradients, modules under other parameters, recomputation by blocks."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])

_USE_REFERENCE = (
    "Build the loss with backend='reference', which is ordinary autograd and holds the score matrix."
)


# Code outside of compiled graphs


def outside_graphs(function: F) -> F:
    """As `torch.compiler.disable`, without importing the compiler for it, which takes two seconds.

    Nothing can be compiling before it is imported.
    """
    disabled: list[Any] = []

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" in sys.modules:
            if not disabled:
                disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
            return disabled[0](*args, **kwargs)
        return function(*args, **kwargs)

    # The compiler checks this attribute, and breaks the graph before the call.
    wrapper._torchdynamo_disable = True  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


# Errors for unsupported autograd features


def refuse_transforms() -> None:
    """Raise under `torch.func` transforms."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "expected a streaming loss outside torch.func transforms (grad, vmap, jvp), received a call inside "
            f"one: its gradients are formed in closed form, in its own sweep. {_USE_REFERENCE}"
        )


def refuse_second_derivative(of: str = "a streaming loss", instead: str = _USE_REFERENCE) -> None:
    """Raise in a backward whose own graph is recorded."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"expected a first derivative of {of}, received create_graph=True: gradients that are formed block by "
            f"block carry no graph. {instead}"
        )


def without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward outside autocast, so that its products keep their precision."""

    @functools.wraps(backward)
    def exact(ctx: Any, *grads: Tensor) -> Any:
        with torch.autocast(grads[0].device.type, enabled=False):
            return backward(ctx, *grads)

    return exact


# Random numbers


class RandomState:
    """A snapshot of the random number generators, so that a second sweep drops the same units as the first.

    Args:
        device: where random numbers are drawn, besides the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda: Tensor | None = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Replay the random numbers since the snapshot inside the block, and restore the generators after it."""
        devices = [] if self._cuda is None else [self._device]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield


# Modules that compute with other tensors in place of their parameters


class Rebound:
    """A module that computes with other tensors in place of its parameters, and is not modified.

    `torch.func.functional_call` writes the substitutes into the module during the call, where other threads that run
    the module see them. This builds a second module instead, which shares buffers, hooks and attributes; attributes
    that a call assigns are written back. Parameters reached in another way (a compiled layer, a bound method in an
    attribute) stay the original ones: compute the gradient of both.

    Args:
        module: the module.
        parameters: parameters to replace.
        substitutes: their replacements, in that order.

    Example:
        >>> import torch
        >>> layer, weight = torch.nn.Linear(2, 1, bias=False), torch.zeros(1, 2, requires_grad=True)
        >>> Rebound(layer, [layer.weight], [weight]).call(torch.nn.Linear.forward, torch.ones(2)).sum().backward()
        >>> weight.grad, layer.weight.grad
        (tensor([[1., 1.]]), None)
    """

    def __init__(
        self, module: nn.Module, parameters: Sequence[Tensor], substitutes: Sequence[Tensor]
    ) -> None:
        by_id = {id(p): x for p, x in zip(parameters, substitutes, strict=True) if x is not p}
        self._by_id, self._module = by_id, module
        #: Each module's copy, and its attributes before the last call.
        self._copies: dict[nn.Module, tuple[nn.Module, dict[str, Any]]] = {}
        if not by_id:
            return
        # Python cannot replace the parameters of a scripted module: it is not copied.
        originals = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
        copies = {m: object.__new__(type(m)) for m in originals}
        for original, copy in copies.items():
            attributes = dict(original.__dict__)
            attributes["_parameters"] = {
                name: by_id.get(id(p), p) for name, p in original._parameters.items()
            }
            attributes["_modules"] = {name: copies.get(m, m) for name, m in original._modules.items()}  # type: ignore[arg-type]
            copy.__dict__ = attributes
            self._copies[original] = copy, dict(attributes)
        self._module = copies.get(module, module)

    def substitute(self, x: Tensor) -> Tensor:
        """The substitute of a parameter; any other tensor itself."""
        return self._by_id.get(id(x), x)

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        """`method(module, *args)`, computed with the substitutes."""
        result = method(self._module, *args)
        for module, (copy, before) in self._copies.items():
            for name, value in copy.__dict__.items():
                # Compared with `before`, not with the module's value, which another thread may have changed.
                if value is not before.get(name):
                    module.__dict__[name] = before[name] = value
        return result


def add_all_(totals: list[Tensor | None], parts: Sequence[Tensor | None]) -> None:
    """Add gradients to totals, in their memory; None counts as zero."""
    for k, part in enumerate(parts):
        total = totals[k]
        if part is not None and total is None:
            totals[k] = part.clone()  # autograd may return one tensor as the gradient of two parameters
        elif part is not None and total is not None:
            total.add_(part)


# Recomputation by blocks

#: Rows whose temperatures are predicted at a time: few enough that the allocator reuses the memory of a block's
#: activations, and enough for fast products.
BLOCK_OF_ROWS = 512

#: `(rows, parameters) -> result`: one number per row, computed with these parameters; None: the function's own.
BlockFunction: TypeAlias = Callable[[slice, tuple[Tensor, ...] | None], Tensor]


class CheckpointedBlocks(torch.autograd.Function):
    """One number for each of n rows, computed a block at a time, and again in backward: no buffer grows with n.

    Activation checkpointing does the same with hooks, whose allocations between blocks fragment the heap: four times
    the memory of a block, at 16,384 rows.

    Args of `apply`:
        function: the numbers of a block.
        n: number of rows, > 0.
        random: whether the function draws random numbers (dropout): backward must draw the same ones.
        *parameters: those that gradients flow to.
    """

    @staticmethod
    def forward(ctx: Any, function: BlockFunction, n: int, random: bool, *parameters: Tensor) -> Tensor:
        device = parameters[0].device
        ctx.function, ctx.n = function, n
        ctx.autocast = torch.autocast(
            device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        )
        ctx.random_state = RandomState(device) if random else None
        ctx.save_for_backward(*parameters)
        step = BLOCK_OF_ROWS
        return torch.cat([function(slice(i, min(i + step, n)), None) for i in range(0, n, step)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(
            f"the temperatures of more than {BLOCK_OF_ROWS} rows",
            "Call the predictor itself, predictor(features), which is ordinary autograd.",
        )
        # Aliases: a hook on a parameter must see one gradient, the sum over blocks.
        parameters = tuple(p.detach().requires_grad_(p.requires_grad) for p in ctx.saved_tensors)
        if ctx.random_state is None:
            totals = _gradients(ctx, parameters, grads[0])
        else:
            with ctx.random_state.restored():
                totals = _gradients(ctx, parameters, grads[0])
        remaining = iter(totals)
        return None, None, None, *(next(remaining) if p.requires_grad else None for p in parameters)


def _gradients(ctx: Any, parameters: tuple[Tensor, ...], gradient: Tensor) -> list[Tensor | None]:
    """Gradient of each trained parameter, summed over the blocks."""
    trained = [k for k, p in enumerate(parameters) if p.requires_grad]
    # The original parameters too, which a call may have used: see `Rebound`.
    leaves = [group[k] for group in (parameters, ctx.saved_tensors) for k in trained]
    totals: list[Tensor | None] = [None] * len(trained)
    for start in range(0, ctx.n, BLOCK_OF_ROWS):
        rows = slice(start, min(start + BLOCK_OF_ROWS, ctx.n))
        with torch.enable_grad(), ctx.autocast:
            result = ctx.function(rows, parameters)
        parts = torch.autograd.grad(result, leaves, gradient[rows], allow_unused=True)
        add_all_(totals, parts[: len(trained)])
        add_all_(totals, parts[len(trained) :])
    return totals
