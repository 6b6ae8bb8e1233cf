"""Matrix products of low-precision factors, summed in float32."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from dro_temp._tensors import LOW, contiguous_left_factor, sums_in_float32
from dro_temp._typing import Features, Scores

# Columns of a product that a CPU computes at a time: its library packs the larger factor, and a pack that stays in the
# cache makes few rows times 128k columns a fifth faster, and needs 4 MB less.
_CPU_COLUMNS = 1024


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16 products; emulated ones are 8 to 100 times slower than float32."""
    queries = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, query)() for query in queries if hasattr(torch.cpu, query))


def scorer(queries: Features, keys: Features) -> Callable[..., Scores]:
    """A function that scores queries, of the dtype and device of these, with keys, [m d]."""
    wide = keys.to(score_dtype(keys)).T

    def score(queries: Features, out: Scores, scale: float = 1.0) -> Scores:
        return product(queries, wide, out, scale)

    return score


def score_dtype(x: Tensor) -> torch.dtype:
    """Precision in which scores are multiplied: no digit of the factors is lost on the way to float32."""
    if x.dtype not in LOW:
        return x.dtype
    return x.dtype if x.device.type != "cpu" and sums_in_float32(x.device) else torch.float32


def gradient_dtype(x: Tensor) -> torch.dtype:
    """Precision in which gradients are multiplied, though not summed: that of the factors, where that is fast."""
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and cpu_multiplies_bfloat16():
        return x.dtype
    return score_dtype(x)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type == "cpu":
        return torch.mm(a, b)
    return torch.mm(a, b, out_dtype=torch.float32)


def product(a: Tensor, b: Tensor, out: Tensor, scale: float = 1.0) -> Tensor:
    """`out = scale * a @ b` in the precision of `b`, the larger factor; `out` may be more precise than both."""
    a = a.to(b.dtype)
    if b.dtype != out.dtype:
        return torch.mul(_multiply(contiguous_left_factor(a), b), scale, out=out)
    m = b.shape[1]
    step = _CPU_COLUMNS if b.device.type == "cpu" else max(m, 1)  # all columns at once on a device
    for start in range(0, m, step):
        tile = slice(start, min(start + step, m))
        part = out[:, tile]
        torch.addmm(part, a, b[:, tile], beta=0.0, alpha=scale, out=part)
    return out


def multiply(a: Tensor, b: Tensor, out: Tensor, *, scale: float = 1.0, add: bool = False) -> Tensor:
    """`out = scale * a @ b`, or with `add` that is added: in one call, which reads and writes `out` once.

    Args:
        a: of one precision with b.
        b: on a device, in any layout.
        out: of their precision, or in float32.
        scale: a factor.
        add: whether to add to `out`.
    """
    beta = 1.0 if add else 0.0
    if a.device.type == "cpu" or (out.dtype != a.dtype and not sums_in_float32(a.device)):
        wide = torch.promote_types(out.dtype, torch.float32)
        part = torch.mm(a.to(wide), b.to(wide))
        part = part if scale == 1.0 else part * scale
        return out.add_(part) if add else out.copy_(part)
    if out.dtype == a.dtype:
        return torch.addmm(out, a, b, beta=beta, alpha=scale, out=out)
    return torch.addmm(out, a, b, beta=beta, alpha=scale, out_dtype=out.dtype, out=out)


def accumulate_(total: Tensor, weights: Scores, x: Features, factor: torch.dtype, *, first: bool) -> None:
    """`total += weights.T @ x`: adds a block of rows to a gradient.

    Args:
        total: [m d], in the precision of the sums.
        weights: [n m].
        x: [n d].
        factor: precision of the factors.
        first: True to overwrite `total`, which saves the pass that fills it with zeros.
    """
    if factor == total.dtype:
        torch.addmm(total, weights.T, x, beta=0.0 if first else 1.0, out=total)
        return
    # Rows of x may be far below float16's smallest number: scale them up for the product.
    largest = x.abs().amax().clamp(min=torch.finfo(x.dtype).tiny)
    part = _multiply(weights.to(factor).T, (x / largest).to(factor))
    if first:
        torch.mul(part, largest, out=total)
    else:
        total.addcmul_(part, largest)


def empty_contiguous(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised, row by row whatever the layout of x: `empty_like` would keep that of a transposed weight."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
