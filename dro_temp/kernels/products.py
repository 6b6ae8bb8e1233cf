"""Matrix products of low-precision factors whose sums are kept in float32."""

import functools

import torch
from torch import Tensor

LOW = (torch.float16, torch.bfloat16)

# Columns of a product that are made at a time on a processor: its library packs the larger factor, and a pack that
# stays in the cache makes few rows times 128k columns a fifth faster, and needs 4 MB less.
_CPU_COLUMNS = 2048


@functools.cache
def processor_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it."""
    # Without such instructions a bfloat16 product is emulated, 8 to 100 times slower than a float32 one.
    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, ask)() for ask in asks if hasattr(torch.cpu, ask))


@functools.cache
def _sums_in_float32(device: torch.device) -> bool:
    """Whether `torch.mm` returns float32 from low-precision factors there (torch 2.8 and later, on CUDA)."""
    try:
        one = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
        torch.mm(one, one, out_dtype=torch.float32)
    except (TypeError, NotImplementedError, RuntimeError):
        return False
    return True


def work_dtype(queries: Tensor, keys: Tensor) -> torch.dtype:
    """Precision of scores and sums: float32 or better."""
    return torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)


def score_dtype(x: Tensor) -> torch.dtype:
    """Precision in which scores are multiplied: no digit of the factors is lost on the way to float32."""
    if x.dtype not in LOW:
        return x.dtype
    return x.dtype if x.device.type != "cpu" and _sums_in_float32(x.device) else torch.float32


def gradient_dtype(x: Tensor) -> torch.dtype:
    """Precision in which gradients are multiplied: that of the factors, where that is fast.

    Weights are rounded to it, sums are not.
    """
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and processor_multiplies_bfloat16():
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
        return torch.mul(_multiply(a, b), scale, out=out)
    for tile in _column_tiles(b):
        part = out[:, tile]
        torch.addmm(part, a, b[:, tile], beta=0.0, alpha=scale, out=part)
    return out


def _column_tiles(b: Tensor) -> list[slice]:
    """Columns of a product's larger factor that are multiplied at a time; all at once on a device."""
    m = b.shape[1]
    step = _CPU_COLUMNS if b.device.type == "cpu" else max(m, 1)
    return [slice(start, min(start + step, m)) for start in range(0, m, step)]


def accumulate_product(total: Tensor, a: Tensor, b: Tensor, factor: torch.dtype, *, first: bool) -> None:
    """`total += a @ b`, multiplied in the precision `factor`, summed in that of `total`.

    The first time whatever `total` holds is overwritten: filling it with zeros would be a pass of its own.
    """
    if factor == total.dtype:
        torch.addmm(total, a, b, beta=0.0 if first else 1.0, out=total)
        return
    # A gradient's weights may be far below float16's smallest number: scale them up for the product.
    top = b.abs().amax().clamp(min=torch.finfo(b.dtype).tiny)
    part = _multiply(a.to(factor), (b / top).to(factor))
    if first:
        torch.mul(part, top, out=total)
    else:
        total.addcmul_(part, top)
