"""How much memory a sweep may use, and how many rows it takes at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from dro_temp._checks import check_count

MIB = 2**20
_CACHE_BYTES: ContextVar[int] = ContextVar("cache_bytes", default=512 * MIB)

# A product of fewer than 128 rows leaves the processor waiting for keys; beyond 256 little is gained. Where no product
# adds up the rows, 192 are nearly as good, and the buffer is smaller.
_CPU_ROWS, _CPU_ROWS_ALONE, _CPU_MIN_ROWS, _CPU_BLOCK = 256, 192, 16, 128 * MIB
# Blocks of a matrix that is kept whole need no memory of their own; 512 rows make its products 5 % faster.
_CPU_KEPT_ROWS = 512
# Narrow supports: longer blocks, so that Python's share stays small, but still inside the processor's cache.
_CPU_CACHE = 8 * MIB
_DEVICE_BLOCK = 512 * MIB


@contextmanager
def byte_budget(cached_scores: int) -> Iterator[None]:
    """How many bytes a sweep may keep from forward to backward, in scores that it would else compute twice.

    With a budget for the whole score matrix backward costs two matrix products, without one three. The default
    is 512 MiB; it holds in this thread of control.

    Args:
        cached_scores: bytes, >= 0; 0 always computes twice.

    Example:
        >>> from dro_temp import kernels
        >>> with kernels.byte_budget(0):
        ...     pass  # a forward in here keeps no scores
    """
    token = _CACHE_BYTES.set(check_count("cached_scores", cached_scores, minimum=0))
    try:
        yield
    finally:
        _CACHE_BYTES.reset(token)


def fits_cache(numel: int, dtype: torch.dtype) -> bool:
    """Whether that many numbers may be kept from forward to backward."""
    return numel * dtype.itemsize <= _CACHE_BYTES.get()


def block_rows(
    n: int,
    outcomes: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    sums_over_rows: bool = True,
    kept: bool = False,
) -> int:
    """Number of rows that are scored at a time; at least one.

    Args:
        n: rows in all.
        outcomes: scores of a row.
        dtype: of the scores.
        device: where they are.
        sums_over_rows: whether a product adds up the block's rows, and so wants many of them.
        kept: whether the blocks are parts of a matrix that is there anyway.
    """
    row_bytes = max(outcomes, 1) * dtype.itemsize
    if device.type == "cpu":
        wanted = _CPU_KEPT_ROWS if kept else _CPU_ROWS if sums_over_rows else _CPU_ROWS_ALONE
        rows = max(wanted, _CPU_CACHE // row_bytes)
        rows = max(min(rows, _CPU_BLOCK // row_bytes), _CPU_MIN_ROWS)
    else:
        rows = max(_DEVICE_BLOCK // row_bytes, 128)
    if rows < n:  # even blocks: the last one should not be a sliver
        rows = -(-n // -(-n // rows))
    return max(min(rows, n), 1)
