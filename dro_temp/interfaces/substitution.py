"""Computing with other tensors in place of a module's parameters, while the module stays as it is."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Substituted(TorchFunctionMode):
    """Inside, operations of this thread take other tensors in place of some parameters.

    `torch.func.functional_call` writes the substitutes into the module for as long as the call lasts, so that another
    thread that runs the module, or looks at its parameters, meets them there. This writes into nothing: it replaces the
    arguments of each operation. What it cannot see, such as a parameter handed to an `autograd.Function` as it is,
    keeps the parameter: ask for the gradient of both.

    Args:
        originals: parameters to be replaced.
        substitutes: what takes their places, in that order.

    Example:
        >>> import torch
        >>> layer, weight = torch.nn.Linear(2, 1, bias=False), torch.zeros(1, 2, requires_grad=True)
        >>> with Substituted([layer.weight], [weight]):
        ...     layer(torch.ones(2)).sum().backward()
        >>> weight.grad, layer.weight.grad
        (tensor([[1., 1.]]), None)
    """

    def __init__(self, originals: Iterable[Tensor], substitutes: Iterable[Tensor]) -> None:
        super().__init__()
        pairs = zip(originals, substitutes, strict=True)
        self._by_id = {id(x): y for x, y in pairs if x is not y}

    def of(self, x: Any) -> Any:
        """What takes the place of x: of a parameter, or of those in lists, tuples and mappings."""
        # Of no other tensor the id: the compiler takes it for a constant, and compiles a layer for one input alone.
        if isinstance(x, nn.Parameter):
            return self._by_id.get(id(x), x)
        if type(x) in (list, tuple):
            return type(x)(map(self.of, x))
        if type(x) is dict:
            return {name: self.of(value) for name, value in x.items()}
        return x

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the operation with the substitutes."""
        return func(*map(self.of, args), **{name: self.of(x) for name, x in (kwargs or {}).items()})
