"""Precision of scores, groups of rows that fit the cache, and constants in compiled graphs."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

LOW = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in LOW else x


def work_dtype(queries: Tensor, keys: Tensor) -> torch.dtype:
    """Precision of scores and of sums over them: float32 or better."""
    return torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)


def contiguous_left_factor(a: Tensor) -> Tensor:
    """The left factor of a low-precision product, without gaps between its rows on a CPU.

    oneDNN's AMX kernels read the rows of a strided left factor up to the next multiple of 32 columns, and multiply
    the memory there by a zero of padding: NaN if it is NaN or infinite (measured with torch 2.14 on a Sapphire
    Rapids, bfloat16 and float16; right factors and transposed ones are safe).
    """
    return a.contiguous() if a.device.type == "cpu" and a.dtype in LOW else a


# Scores that stay in a CPU's cache from one elementwise pass to the next; on a device, launching costs more.
_CPU_SCORES, _DEVICE_SCORES = 2**18, 2**26


def row_groups(scores: Tensor) -> list[slice]:
    """Slices of few enough rows that their scores stay in the CPU's cache from pass to pass.

    One slice of all rows inside `torch.compile`: unrolling a loop would tie the graph to one number of groups.
    """
    if torch.compiler.is_compiling():
        return [slice(None)]
    n, m = scores.shape
    step = max((_CPU_SCORES if scores.device.type == "cpu" else _DEVICE_SCORES) // max(m, 1), 1)
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


F = TypeVar("F", bound=Callable[..., Any])


def log_of_size(size: int, like: Tensor) -> float | Tensor:
    """Log of a size, or of 1 if that is larger.

    In a graph it is a scalar with the dtype of `like`: `math.log` would specialise the graph on this size.
    """
    if torch.compiler.is_compiling():
        return like.new_full((), size).clamp(min=1).log()
    return math.log(max(size, 1))


def constant_in_graphs(function: F) -> F:
    """As `torch.compiler.assume_constant_result`, which loads the whole compiler when it decorates.

    For results that do not change after the graph was compiled, such as features of the machine.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
