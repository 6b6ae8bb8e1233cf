"""A step's operations, recorded and run again on the same memory: what a CUDA graph does, on a CPU."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """Records each operation with its tensors, which it keeps alive; `replay` runs them once more.

    As in a CUDA graph, Python does not run again: what it decided, counted or read at the recording stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Each operation again; results go where the first ones are."""
        for func, args, kwargs, result in self.operations:
            if func._schema.is_mutable:
                func(*args, **kwargs)
                continue
            inputs = {
                x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)
            }
            first = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            if any(x.untyped_storage()._cdata in inputs for x in first):
                continue  # a view, of memory that is written anyway
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for old, new in zip(first, again, strict=True):
                old.copy_(new)
