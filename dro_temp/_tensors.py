"""Precision of scores, groups of rows that fit the cache, and constants in compiled graphs."""

import functools
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


@functools.cache
def sums_in_float32(device: torch.device) -> bool:
    """Whether products of low-precision factors add to float32 there (torch 2.8 and later, on CUDA)."""
    try:
        one = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
        total = torch.ones(16, 16, device=device)
        torch.addmm(total, one, one, alpha=0.5, out_dtype=torch.float32, out=total)
        return bool((total == 9.0).all())
    except (TypeError, NotImplementedError, RuntimeError):
        return False


def product_with_bfloat16(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """`out = a @ b` of a float32 and a bfloat16 factor, by bfloat16 products that add to float32.

    The float32 factor is the sum of three bfloat16 numbers, 24 digits: as precise as a float32 product, at several
    times its speed, and without a float32 copy of the other factor.
    """
    rest = a
    for k in range(3):
        part = rest.to(torch.bfloat16)
        torch.addmm(out, part, b, beta=float(k > 0), out_dtype=torch.float32, out=out)
        rest = rest - part
    return out


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
