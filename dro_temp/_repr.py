"""Representations of values that hold tensors: one line of shapes, dtypes and devices, and no numbers."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from torch import Tensor

# More entries than this are counted: the metrics of an objective, say.
_FEW = 3


def described(value: Any) -> str:
    """A tensor as dtype, shape and, if it is elsewhere, device; a mapping of them likewise; the rest as it is.

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
        if len(value) > _FEW and all(isinstance(x, Tensor) and x.dim() == 0 for x in value.values()):
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
    held = ((field.name, getattr(instance, field.name), field) for field in fields(instance))
    parts = (f"{name}={described(value)}" for name, value, field in held if not _is_default(field, value))
    return f"{type(instance).__name__}({', '.join(parts)})"


def _is_default(field: "Field[Any]", value: Any) -> bool:
    if field.default_factory is not MISSING:
        return bool(value == field.default_factory())
    return value is field.default
