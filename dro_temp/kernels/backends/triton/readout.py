r"""From a TempNet's similarities to its temperatures, one kernel each way instead of a dozen operations.

pooled_kernel           raw = w . [(softmax(v / e^phi) - 1/K) * y] + b       a row's v, y stay on the chip
pooled_gradient_kernel  dv, dy; and sums over some rows of dw, db, dphi
bounded_kernel          tau = lower + (upper - lower) sigmoid(raw), and its gradient
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import Features, PerRow
from dro_temp.kernels.backends.triton.launch import launch
from dro_temp.kernels.backends.triton.pair_tiles import by_rows

#: Similarities that a program reads at a time, all of a row at least; and the most that fit.
TILE, WIDEST = 2048, 8192
#: Rows of a program of `bounded_kernel`.
BOUNDED_ROWS = 256
#: Programs that sum parameters' gradients: enough to fill a GPU, few enough to add up.
MOST_PARTS = 512


@triton.jit  # type: ignore[untyped-decorator]
def load_rows(similarities, pooled, weight, rows, columns, n, k, stride, pooled_stride):  # type: ignore[no-untyped-def]
    """Some rows' similarities, what is pooled, and the weights; zero outside."""
    mask = (rows < n)[:, None] & (columns < k)[None, :]
    v = tl.load(similarities + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)
    y = tl.load(pooled + rows[:, None] * pooled_stride + columns[None, :], mask=mask, other=0.0)
    return v, y, tl.load(weight + columns, mask=columns < k, other=0.0), mask


@triton.jit  # type: ignore[untyped-decorator]
def attention(v, columns, k, sharpness):  # type: ignore[no-untyped-def]
    """softmax(v * sharpness) over the columns that there are."""
    z = tl.where((columns < k)[None, :], v * sharpness, -float("inf"))
    e = tl.exp(z - tl.max(z, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def pooled_kernel(  # type: ignore[no-untyped-def]
    similarities,  # [n k], rows `stride` apart
    pooled,  # [n k], rows `pooled_stride` apart
    log_sharpness,  # [1]
    weight,  # [k]
    bias,  # [1]
    raw,  # [n], written
    n,
    k,
    stride,
    pooled_stride,
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Some rows."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    v, y, w, _ = load_rows(similarities, pooled, weight, rows, columns, n, k, stride, pooled_stride)
    a = attention(v, columns, k, tl.exp(-tl.load(log_sharpness)))
    # Outside, the weights are zero.
    total = tl.sum((a - 1.0 / k) * y * w[None, :], 1) + tl.load(bias)
    tl.store(raw + rows, total, mask=rows < n)


@triton.jit  # type: ignore[untyped-decorator]
def pooled_gradient_kernel(  # type: ignore[no-untyped-def]
    similarities,  # [n k], rows `stride` apart
    pooled,  # [n k], rows `pooled_stride` apart
    log_sharpness,  # [1]
    weight,  # [k]
    upstream,  # [n]
    of_similarities,  # [n k], written, contiguous
    of_pooled,  # [n k], written, contiguous
    of_parameters,  # [programs k+2], written: of the weights, the bias, and the sharpness
    n,
    k,
    stride,
    pooled_stride,
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Every so many rows, one after another: parameters' sums stay on the chip."""
    columns = tl.arange(0, COLUMNS)
    sharpness = tl.exp(-tl.load(log_sharpness))
    of_weight, of_bias = tl.zeros([COLUMNS], tl.float32), tl.zeros([ROWS], tl.float32)
    of_sharpness = tl.zeros([ROWS], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0)):
        rows = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        v, y, w, mask = load_rows(similarities, pooled, weight, rows, columns, n, k, stride, pooled_stride)
        g = tl.load(upstream + rows, mask=rows < n, other=0.0)
        a = attention(v, columns, k, sharpness)
        share = (a - 1.0 / k) * g[:, None]
        c = y * w[None, :]
        of_z = a * (c - tl.sum(a * c, 1)[:, None]) * g[:, None]
        at = rows[:, None] * k + columns[None, :]
        tl.store(of_similarities + at, of_z * sharpness, mask=mask)
        tl.store(of_pooled + at, share * w[None, :], mask=mask)
        of_weight += tl.sum(share * y, 0)
        of_bias += g
        of_sharpness -= tl.sum(of_z * v, 1) * sharpness
    to = of_parameters + tl.program_id(0) * (k + 2)
    tl.store(to + columns, of_weight, mask=columns < k)
    tl.store(to + k, tl.sum(of_bias, 0))
    tl.store(to + k + 1, tl.sum(of_sharpness, 0))


@triton.jit  # type: ignore[untyped-decorator]
def bounded_kernel(  # type: ignore[no-untyped-def]
    raw,  # [n]
    upstream,  # [n], of the gradient only
    out,  # [n], written
    n,
    lower,
    upper,
    GRADIENT: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
):
    """Some rows."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    share = 1.0 / (1.0 + tl.exp(-tl.load(raw + at, mask=at < n, other=0.0)))
    tau = lower + (upper - lower) * share
    if GRADIENT:
        # As of a clamp: a number that rounding would put outside has none.
        inside = (tau >= lower) & (tau <= upper)
        g = tl.load(upstream + at, mask=at < n, other=0.0)
        slope = g * (upper - lower) * share * (1.0 - share)
        result = tl.where(inside | (tau != tau), slope, 0.0)
    else:
        # NaN stays.
        result = tl.where(tau < lower, lower, tl.where(tau > upper, upper, tau))
    tl.store(out + at, result, mask=at < n)


def rows_and_columns(k: int) -> dict[str, int]:
    """Tile of a program for similarities of width k."""
    columns = triton.next_power_of_2(k)
    return {"ROWS": max(TILE // columns, 1), "COLUMNS": columns, "num_warps": 4 if columns <= TILE else 8}


def pooled_readout(
    similarities: Features, pooled: Features, log_sharpness: Tensor, weight: Tensor, bias: Tensor
) -> PerRow:
    """The number of each row, [n], before it is bounded.

    Args:
        similarities: [n k], v; float32 like all, and k at most `WIDEST`.
        pooled: [n k], y.
        log_sharpness: [1], phi.
        weight: [1 k], w.
        bias: [1], b.
    """
    n, k = similarities.shape
    similarities, pooled = by_rows(similarities), by_rows(pooled)
    raw = similarities.new_empty(n)
    tile = rows_and_columns(k)
    launch(
        pooled_kernel,
        triton.cdiv(n, tile["ROWS"]),
        similarities,
        pooled,
        log_sharpness,
        weight.contiguous(),
        bias,
        raw,
        n,
        k,
        similarities.stride(0),
        pooled.stride(0),
        **tile,
    )
    return raw


def pooled_gradients(
    similarities: Features, pooled: Features, log_sharpness: Tensor, weight: Tensor, upstream: PerRow
) -> tuple[Features, Features, Tensor, Tensor, Tensor]:
    """Gradients of the arguments of `pooled_readout`."""
    n, k = similarities.shape
    similarities, pooled = by_rows(similarities), by_rows(pooled)
    of_similarities, of_pooled = similarities.new_empty(n, k), similarities.new_empty(n, k)
    tile = rows_and_columns(k)
    programs = min(triton.cdiv(n, tile["ROWS"]), MOST_PARTS)
    parts = similarities.new_empty(programs, k + 2)
    launch(
        pooled_gradient_kernel,
        programs,
        similarities,
        pooled,
        log_sharpness,
        weight.contiguous(),
        upstream.contiguous(),
        of_similarities,
        of_pooled,
        parts,
        n,
        k,
        similarities.stride(0),
        pooled.stride(0),
        **tile,
    )
    total = parts.sum(0)
    # `total[None, :k]` would have another stride than the weights, which wrappers for several processes warn of.
    return of_similarities, of_pooled, total[k + 1 :], total[:k].view(1, k), total[k : k + 1]


def bounded(raw: PerRow, lower: float, upper: float) -> PerRow:
    """`functional.sigmoid_between` of float32 numbers."""
    return _bounded(raw, None, lower, upper)


def bounded_gradient(raw: PerRow, upstream: PerRow, lower: float, upper: float) -> PerRow:
    """The gradient of `bounded` with respect to `raw`."""
    return _bounded(raw, upstream, lower, upper)


def _bounded(raw: PerRow, upstream: PerRow | None, lower: float, upper: float) -> PerRow:
    raw = raw.contiguous()
    out = torch.empty_like(raw)
    launch(
        bounded_kernel,
        triton.cdiv(len(raw), BOUNDED_ROWS),
        raw,
        raw if upstream is None else upstream.contiguous(),
        out,
        len(raw),
        lower,
        upper,
        GRADIENT=upstream is not None,
        ROWS=BOUNDED_ROWS,
        num_warps=1,
    )
    return out
