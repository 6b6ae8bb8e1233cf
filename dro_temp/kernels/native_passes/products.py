"""Products of bfloat16 factors, where the processor multiplies those; PyTorch would round their sums."""

from ctypes import c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from dro_temp._typing import Features, Scores
from dro_temp.kernels import products
from dro_temp.kernels.native_passes.library import native
from dro_temp.kernels.native_passes.matrices import matrix, rows_are_dense
from dro_temp.kernels.native_passes.threads import shared
from dro_temp.kernels.products import Scorer

# Keys that are packed at a time; threads share whole packs.
_SCORED, _ADDED = 48, 32


def scorer(queries: Features, keys: Features) -> Scorer:
    """See `products.scorer`."""
    library = _library()
    if library is None or not (_pairs(queries) and _pairs(keys)):
        return products.scorer(queries, keys)
    keys = keys.detach()
    m, d = keys.shape

    def score(queries: Features, out: Scores, scale: float = 1.0) -> Scores:
        queries = queries.detach()

        def work(first: int, last: int) -> None:
            library.score_bfloat16(
                *matrix(queries),
                c_int64(len(queries)),
                *matrix(keys),
                *(c_int64(x) for x in (first * _SCORED, min(last * _SCORED, m), d)),
                c_float(scale),
                *matrix(out),
            )

        shared(work, -(-m // _SCORED), _SCORED * len(queries))
        return out

    return score


def add_up(total: Tensor, weights: Scores, x: Features, factor: torch.dtype, *, first: bool) -> None:
    """See `products.add_up`."""
    library = _library()
    fits = factor == torch.bfloat16 and total.dtype == torch.float32 and total.numel() > 0
    if library is None or not (fits and rows_are_dense(total)):
        products.add_up(total, weights, x, factor, first=first)
        return
    weights, x = weights.to(factor), x.to(factor).contiguous()
    weights = weights if rows_are_dense(weights) else weights.contiguous()
    (n, d), m = x.shape, len(total)
    turned = x.new_empty(library.turned_size(c_int64(n), c_int64(d)))
    library.turn(*matrix(x), c_int64(n), c_int64(d), c_void_p(turned.data_ptr()))

    def work(start: int, stop: int) -> None:
        library.add_up_bfloat16(
            *matrix(weights),
            c_int64(n),
            c_void_p(turned.data_ptr()),
            *(c_int64(x) for x in (start * _ADDED, min(stop * _ADDED, m), d, not first)),
            *matrix(total),
        )

    shared(work, -(-m // _ADDED), _ADDED * n)


def _library() -> Any:
    """The C library, where the processor multiplies bfloat16; else None."""
    library: Any = native().library
    if library is None or not library.multiplies_bfloat16():
        return None
    library.turned_size.restype = c_int64
    return library


def _pairs(x: Features) -> bool:
    """Whether its rows are pairs of bfloat16 numbers, side by side."""
    whole = x.shape[1] % 2 == 0 and rows_are_dense(x) and x.stride(0) % 2 == 0
    return whole and x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() > 0
