"""The modules below some others, listed once: walking through a model at every step takes as long as small layers."""

from collections.abc import Iterator
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn


class ModuleTree:
    """All modules below some roots that are of a kind, in the order of `torch.nn.Module.modules`.

    The list is kept, and made anew where a child was added, replaced or removed; to see that takes a tenth of the time
    of the walk.

    Args:
        roots: modules.
        kind: class of the modules.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> tree, linear = ModuleTree(model), ModuleTree(model, kind=nn.Linear)
        >>> len(tree.modules()), len(linear.modules()), len(list(tree.parameters()))
        (3, 1, 2)
        >>> _ = model.append(nn.Linear(3, 1))
        >>> len(tree.modules()), len(linear.modules()), len(list(tree.parameters()))
        (4, 2, 4)
    """

    def __init__(self, *roots: nn.Module, kind: type[Any] = nn.Module) -> None:
        self._roots, self._kind = roots, kind
        #: Every module with its children, and what they were; None before the first walk.
        self._children: list[tuple[nn.Module, dict[str, nn.Module | None], list[nn.Module | None]]] | None = (
            None
        )
        self._found: list[Any] = []

    def modules(self) -> list[Any]:
        """The modules, each once."""
        known = self._children
        if known is None or torch.compiler.is_compiling():
            return self._walk()
        for module, children, before in known:
            # `del sequential[1:1]`, for one, leaves another dictionary. Modules may define `==`.
            same = module._modules is children and len(children) == len(before)
            if not (same and all(map(is_, children.values(), before))):
                return self._walk()
        return self._found

    def _walk(self) -> list[Any]:
        modules = list(dict.fromkeys(module for root in self._roots for module in root.modules()))
        found = [module for module in modules if isinstance(module, self._kind)]
        if not torch.compiler.is_compiling():
            self._children = [(module, module._modules, list(module._modules.values())) for module in modules]
            self._found = found
        return found

    def parameters(self) -> Iterator[Tensor]:
        """Their own parameters, as they are now: a sharded model replaces them. One that is shared comes again."""
        for module in self.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    yield parameter

    def __getstate__(self) -> dict[str, Any]:
        return ModuleTree(*self._roots, kind=self._kind).__dict__
