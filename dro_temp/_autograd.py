"""Autograd beside PyTorch's own: closed-form gradients, gradients summed over blocks, recomputation by blocks."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

F = TypeVar("F", bound=Callable[..., Any])

_USE_REFERENCE = (
    "Build the loss with backend='reference', which is ordinary autograd and holds the score matrix."
)


# Code outside compiled graphs


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
            f"one: its gradients are formed in closed form, in its own pass. {_USE_REFERENCE}"
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
    def exact(ctx: Any, *grads: Tensor | None) -> Any:
        devices = [x.device.type for x in grads if x is not None]
        with torch.autocast(devices[0] if devices else "cpu", enabled=False):
            return backward(ctx, *grads)

    return exact


# Random numbers


class RandomState:
    """A snapshot of the random number generators, so that a second pass drops the same units as the first.

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


# Gradients of a module that is differentiated block by block


class Substituted(TorchFunctionMode):
    """Inside, operations of this thread compute with other tensors in place of some parameters.

    `torch.func.functional_call` writes the substitutes into the module during the call, where other threads that run
    the module see them. This replaces the arguments of each operation, and modifies nothing. What it cannot see (a
    scripted layer, an `autograd.Function` that is given the parameter itself, a view made earlier) computes with the
    parameter.

    Args:
        parameters: to be replaced.
        substitutes: their replacements, in that order.

    Example:
        >>> import torch
        >>> layer, weight = torch.nn.Linear(2, 1, bias=False), torch.zeros(1, 2, requires_grad=True)
        >>> with Substituted([layer.weight], [weight]):
        ...     layer(torch.ones(2)).sum().backward()
        >>> weight.grad, layer.weight.grad
        (tensor([[1., 1.]]), None)
    """

    def __init__(self, parameters: Sequence[Tensor], substitutes: Sequence[Tensor]) -> None:
        super().__init__()
        pairs = zip(parameters, substitutes, strict=True)
        self._by_id = {id(p): x for p, x in pairs if x is not p}

    def substitute(self, x: Any) -> Any:
        """The substitute of a parameter, or of those in lists, tuples and dicts; anything else itself."""
        # To the compiler the id of a tensor that is not a parameter is a constant, so that it would compile a layer
        # again for every input.
        if isinstance(x, nn.Parameter) or (isinstance(x, Tensor) and not torch.compiler.is_compiling()):
            return self._by_id.get(id(x), x)
        if type(x) in (list, tuple):
            return type(x)(map(self.substitute, x))
        if type(x) is dict:
            return {name: self.substitute(value) for name, value in x.items()}
        return x

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation with the substitutes."""
        return func(*map(self.substitute, args), **self.substitute(kwargs or {}))


class SummedGradients:
    """Gradients of a module's parameters, summed over results that are differentiated one after the other.

    A hook on a parameter must see one gradient, the sum, but autograd calls it for each part. Parameters with hooks are
    therefore replaced by aliases while the results are computed; so are those that the module no longer holds, as
    after `torch.func.functional_call`. All others are differentiated as they are. Sums are in float32 or better.

    Args:
        module: the module.
        parameters: its parameters, of the forward that is differentiated.

    Raises:
        RuntimeError: parameters were added or removed since; or, while adding, a hook would see each part.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[Tensor]) -> None:
        current = list(module.parameters())
        if len(current) != len(parameters):
            raise RuntimeError(
                f"expected the {len(parameters)} parameters that {type(module).__name__} had in its forward, received "
                f"{len(current)}. Make all layers in __init__, or call it once before training; remove none before "
                "backward."
            )
        self._hooked = {k for k, p in enumerate(parameters) if p._backward_hooks or p.retains_grad}
        pairs = enumerate(zip(parameters, current, strict=True))
        #: One for each parameter: itself or its alias.
        self.leaves = [
            p if p is now and k not in self._hooked else p.detach().requires_grad_(p.requires_grad)
            for k, (p, now) in pairs
        ]
        #: The gradient of each parameter; None where no result depends on it.
        self.totals: list[Tensor | None] = [None] * len(current)
        replaced = any(leaf is not now for leaf, now in zip(self.leaves, current, strict=True))
        self._substituted = Substituted(current, self.leaves) if replaced else None
        trained = [(k, leaf) for k, leaf in enumerate(self.leaves) if leaf.requires_grad]
        # The parameters themselves too: an operation may not have seen their aliases.
        self._missed = [k for k, leaf in trained if leaf is not current[k] and current[k].requires_grad]
        self._positions = [*(k for k, _ in trained), *self._missed]
        self._inputs = [*(leaf for _, leaf in trained), *(current[k] for k in self._missed)]

    def computing(self) -> AbstractContextManager[Any]:
        """The context in which to compute a result."""
        return nullcontext() if self._substituted is None else self._substituted

    def leaf(self, parameter: Tensor) -> Tensor:
        """The leaf of a parameter; any other tensor itself."""
        leaf: Tensor = parameter if self._substituted is None else self._substituted.substitute(parameter)
        return leaf

    def add(
        self, result: Tensor, gradient: Tensor, others: Sequence[Tensor] = ()
    ) -> tuple[Tensor | None, ...]:
        """Add the gradients of a result, given dL/dresult; returns those of `others`."""
        parts = torch.autograd.grad(result, [*self._inputs, *others], gradient, allow_unused=True)
        own = len(self._positions)
        for k, part in zip(self._missed, parts[own - len(self._missed) : own], strict=True):
            if part is not None and k in self._hooked:
                raise RuntimeError(
                    "expected hooks on parameters that each operation takes from the module, received one on a "
                    "parameter that a scripted layer, an autograd.Function or an earlier view uses: it would see the "
                    "gradient of each block of rows. Use register_post_accumulate_grad_hook, or change p.grad after "
                    "backward."
                )
        add_gradients(self.totals, self._positions, parts[:own])
        return parts[own:]

    def gradients(self) -> list[Tensor | None]:
        """The sums, each in the precision of its parameter."""
        pairs = zip(self.totals, self.leaves, strict=True)
        return [total if total is None else total.to(leaf.dtype) for total, leaf in pairs]


def add_gradients(
    totals: list[Tensor | None], positions: Iterable[int], parts: Iterable[Tensor | None]
) -> None:
    """Add gradients to the totals at these positions, in float32 or better; None counts as zero."""
    for k, part in zip(positions, parts, strict=True):
        total = totals[k]
        if part is not None and total is None:
            # A copy: autograd may return one tensor as the gradient of two parameters.
            totals[k] = part.to(torch.promote_types(part.dtype, torch.float32), copy=True)
        elif part is not None and total is not None:
            total.add_(part)


# Recomputation by blocks

#: Rows whose temperatures are predicted at a time: few enough that the allocator reuses the memory of a block's
#: activations, and enough for fast products.
BLOCK_OF_ROWS = 512
#: On a device, where launching costs more than memory.
BLOCK_OF_ROWS_ON_DEVICE = 32_768


class CheckpointedBlocks(torch.autograd.Function):
    """One number for each of n rows, computed a block at a time, and again in backward: no buffer grows with n.

    Activation checkpointing does the same with hooks, whose allocations between blocks fragment the heap: four times
    the memory of a block, at 16,384 rows.

    Args of `apply`:
        function: the numbers of a block of rows, [rows].
        n: number of rows, > 0.
        module: computes them; if it is in training mode, backward draws the same random numbers (dropout).
        *parameters: the module's, which gradients flow to.
    """

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[slice], Tensor], n: int, module: nn.Module, *parameters: Tensor
    ) -> Tensor:
        device = parameters[0].device
        ctx.function, ctx.n, ctx.module = function, n, module
        ctx.autocast = torch.autocast(
            device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        )
        ctx.random_state = RandomState(device) if module.training else None
        ctx.save_for_backward(*parameters)
        return torch.cat([function(block) for block in _blocks(n, device)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(
            f"the temperatures of more than {_rows_at_once(grads[0].device)} rows",
            "Call the predictor itself, predictor(features), which is ordinary autograd.",
        )
        sums = SummedGradients(ctx.module, ctx.saved_tensors)
        with nullcontext() if ctx.random_state is None else ctx.random_state.restored():
            for block in _blocks(ctx.n, grads[0].device):
                with torch.enable_grad(), ctx.autocast, sums.computing():
                    result = ctx.function(block)
                sums.add(result, grads[0][block])
        return None, None, None, *sums.gradients()


def _rows_at_once(device: torch.device) -> int:
    return BLOCK_OF_ROWS if device.type == "cpu" else BLOCK_OF_ROWS_ON_DEVICE


def _blocks(n: int, device: torch.device) -> list[slice]:
    step = _rows_at_once(device)
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]
