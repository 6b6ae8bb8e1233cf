"""Dataclasses that torch sees through: DistributedDataParallel, FSDP, `torch.func`, checkpointing, export."""

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree

T = TypeVar("T")


def pytree(*, static: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Register a dataclass with torch's trees.

    Without it a wrapper that looks for tensors in what a module returns finds none: DistributedDataParallel with a
    static graph then averages no gradient, and FSDP gathers no parameter for backward, both silently.

    Args:
        static: fields without tensors, which stay as they are.
    """

    def register(kind: type[T]) -> type[T]:
        names = [field.name for field in fields(kind) if field.name not in static]  # type: ignore[arg-type]

        def flatten(x: T) -> tuple[list[Any], Any]:
            # What is None is part of the structure: `vmap` would take it for a leaf that it cannot map.
            there = tuple(name for name in names if getattr(x, name) is not None)
            return [getattr(x, name) for name in there], (there, tuple(getattr(x, name) for name in static))

        def unflatten(values: Iterable[Any], context: Any) -> T:
            # Not by its constructor, which checks shapes: trees also hold what is no tensor.
            x, (there, fixed) = object.__new__(kind), context
            for name in names:
                object.__setattr__(x, name, None)
            for name, value in (*zip(there, values, strict=True), *zip(static, fixed, strict=True)):
                object.__setattr__(x, name, value)
            return x

        def flatten_with_keys(x: T) -> tuple[list[tuple[Any, Any]], Any]:
            values, context = flatten(x)
            keys = map(_pytree.GetAttrKey, context[0])
            return list(zip(keys, values, strict=True)), context

        _pytree.register_pytree_node(
            kind,
            flatten,
            unflatten,
            serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
            flatten_with_keys_fn=flatten_with_keys,
        )
        return kind

    return register


def map_tensors(function: Callable[[Any], Any], x: T) -> T:
    """The same tree, each of its tensors mapped."""
    mapped: T = _pytree.tree_map_only(Tensor, function, x)
    return mapped
