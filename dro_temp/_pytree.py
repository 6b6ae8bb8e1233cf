"""Dataclasses of tensors: as trees, for DistributedDataParallel, FSDP, `torch.func` and export; as one line of text."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree

T = TypeVar("T")


def pytree(*, static: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Register a dataclass with torch's trees, and represent it in one line.

    Wrappers look for tensors in a module's output, and find none in an unregistered class: DistributedDataParallel
    with a static graph then averages no gradient, and FSDP gathers no parameter for backward, both silently. Static
    fields have no tensors.
    """

    def register(kind: type[T]) -> type[T]:
        names = [field.name for field in fields(kind) if field.name not in static]  # type: ignore[arg-type]

        def flatten(x: T) -> tuple[list[Any], Any]:
            # None is part of the structure: `vmap` would take it for a leaf that it cannot map.
            present = tuple(name for name in names if getattr(x, name) is not None)
            fixed = tuple(getattr(x, name) for name in static)
            return [getattr(x, name) for name in present], (present, fixed)

        def unflatten(values: Iterable[Any], context: Any) -> T:
            # Not by its constructor, which checks shapes: leaves of a tree may be anything.
            x, (present, fixed) = object.__new__(kind), context
            for name in names:
                object.__setattr__(x, name, None)
            for name, value in (*zip(present, values, strict=True), *zip(static, fixed, strict=True)):
                object.__setattr__(x, name, value)
            return x

        def flatten_with_keys(x: T) -> tuple[list[tuple[Any, Any]], Any]:
            values, context = flatten(x)
            return list(zip(map(_pytree.GetAttrKey, context[0]), values, strict=True)), context

        _pytree.register_pytree_node(
            kind,
            flatten,
            unflatten,
            serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
            flatten_with_keys_fn=flatten_with_keys,
        )
        kind.__repr__ = one_line  # type: ignore[method-assign, assignment]
        return kind

    return register


def map_tensors(function: Callable[[Any], Any], x: T) -> T:
    """The same tree, each of its tensors mapped."""
    mapped: T = _pytree.tree_map_only(Tensor, function, x)
    return mapped


def described(value: Any) -> str:
    """A tensor as dtype, shape and, unless it is the CPU, device; a mapping of them likewise; the rest as it is.

    Example:
        >>> import torch
        >>> described({"image": torch.zeros(4, 10)})
        "{'image': float32[4, 10]}"
    """
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        shape = ", ".join(str(size) for size in value.shape)
        return f"{dtype}[{shape}]" + ("" if value.device.type == "cpu" else f" on {value.device}")
    if isinstance(value, Mapping):
        # Many scalars, such as the metrics of an objective, are counted.
        if len(value) > 3 and all(isinstance(x, Tensor) and x.dim() == 0 for x in value.values()):
            return f"{{{len(value)} numbers}}"
        return "{" + ", ".join(f"{key!r}: {described(x)}" for key, x in value.items()) + "}"
    return repr(value)


def one_line(instance: Any) -> str:
    """Representation of a dataclass whose fields hold tensors; fields at their default are left out.

    Example:
        >>> import torch, dro_temp as dt
        >>> dt.Rows(torch.zeros(4, 10), torch.arange(4))
        Rows(scores=float32[4, 10], target=int64[4])
    """
    parts = []
    for field in fields(instance):
        value, factory = getattr(instance, field.name), field.default_factory
        if not (value is field.default if factory is MISSING else value == factory()):
            parts.append(f"{field.name}={described(value)}")
    return f"{type(instance).__name__}({', '.join(parts)})"
