"""Memory of a pass: rows scored at a time, scores saved for backward, and scratch memory that is reused."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from dro_temp._checks import check_count

MIB = 2**20
_CACHE_BYTES: ContextVar[int] = ContextVar("cache_bytes", default=512 * MIB)
_BLOCK_BYTES: ContextVar[int | None] = ContextVar("block_bytes", default=None)

# A product of fewer than 128 rows leaves the CPU waiting for keys; beyond 256 little is gained. Where no product sums
# over the rows, 192 are nearly as good, and the buffer is smaller.
_CPU_ROWS, _CPU_ROWS_NO_SUMS, _CPU_MIN_ROWS, _CPU_BLOCK = 256, 192, 16, 128 * MIB
# Blocks of a stored matrix need no buffer of their own; 512 rows make its products 5 % faster.
_CPU_STORED_ROWS = 512
# Narrow supports: longer blocks, to amortise Python's overhead, but still inside the CPU's cache.
_CPU_CACHE = 8 * MIB
# On a device, a block takes this share of the free memory, within bounds.
_DEVICE_SHARE, _DEVICE_LEAST, _DEVICE_MOST = 8, 64 * MIB, 1024 * MIB


@contextmanager
def byte_budget(cached_scores: int | None = None, *, block: int | None = None) -> Iterator[None]:
    """Bytes of scores that a pass may store from forward to backward, and that it computes at a time.

    With a budget for the whole score matrix backward costs two matrix products, without one three. Larger blocks are
    faster on a GPU: each one reads and writes the float32 gradient of the keys. The setting applies to the current
    context; None leaves it as it is.

    Args:
        cached_scores: bytes, >= 0; 0 always computes twice. The default is 512 MiB.
        block: bytes, > 0, of a block of scores on a GPU, of at least 128 rows. By default an eighth of the memory that
            is free there, between 64 MiB and 1 GiB: sums over rows are added up in blocks, so that their last digits
            may differ with the memory that is free.

    Example:
        >>> from dro_temp import kernels
        >>> with kernels.byte_budget(0):
        ...     pass  # a forward in here stores no scores
    """
    cached = (
        _CACHE_BYTES.get()
        if cached_scores is None
        else check_count("cached_scores", cached_scores, minimum=0)
    )
    of_block = _BLOCK_BYTES.get() if block is None else check_count("block", block)
    tokens = _CACHE_BYTES.set(cached), _BLOCK_BYTES.set(of_block)
    try:
        yield
    finally:
        _CACHE_BYTES.reset(tokens[0])
        _BLOCK_BYTES.reset(tokens[1])


def fits_cache(numel: int, dtype: torch.dtype) -> bool:
    """Whether that many numbers may be stored from forward to backward."""
    return numel * dtype.itemsize <= _CACHE_BYTES.get()


def block_rows(
    n: int,
    row_bytes: int,
    device: torch.device,
    *,
    sums_over_rows: bool = True,
    stored: bool = False,
) -> int:
    """Number of rows that are scored at a time; at least one.

    Args:
        n: rows in all.
        row_bytes: bytes of a row's scores.
        device: of the scores.
        sums_over_rows: whether a product sums over the block's rows, which is efficient for many.
        stored: whether the blocks are parts of a stored matrix.
    """
    row_bytes = max(row_bytes, 1)
    if device.type == "cpu":
        rows = _CPU_STORED_ROWS if stored else _CPU_ROWS if sums_over_rows else _CPU_ROWS_NO_SUMS
        rows = max(rows, _CPU_CACHE // row_bytes)
        rows = max(min(rows, _CPU_BLOCK // row_bytes), _CPU_MIN_ROWS)
    else:
        rows = max(device_block(device) // row_bytes, 128)
    if rows < n:  # even blocks: the last one should not be a sliver
        rows = -(-n // -(-n // rows))
    return max(min(rows, n), 1)


def device_block(device: torch.device) -> int:
    """Bytes of a block of scores on a device."""
    asked = _BLOCK_BYTES.get()
    if asked is not None:
        return asked
    if device.type != "cuda":
        return _DEVICE_MOST
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(max(free // _DEVICE_SHARE, _DEVICE_LEAST), _DEVICE_MOST)


# Scratch memory: a fresh page costs a CPU more than the arithmetic that fills it.


class _Free(threading.local):
    """Released memory of this thread, at most one piece for each purpose and precision."""

    def __init__(self) -> None:
        self.pieces: dict[tuple[str, torch.dtype], Tensor] = {}


_free = _Free()


def acquire(purpose: str, rows: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised matrix, [rows columns], on the device of `like`.

    On a CPU it reuses memory released for the same purpose, if that is large enough; a device has a caching allocator.
    """
    if like.device.type != "cpu" or torch.is_inference_mode_enabled():
        return like.new_empty((rows, columns), dtype=dtype)
    piece = _free.pieces.pop((purpose, dtype), None)
    if piece is None or piece.numel() < rows * columns:
        piece = torch.empty(rows * columns, dtype=dtype)
    return piece[: rows * columns].view(rows, columns)


def release(purpose: str, matrix: Tensor) -> None:
    """Let the next `acquire` for this purpose reuse the memory."""
    if matrix.device.type == "cpu" and matrix._base is not None:
        _free.pieces[purpose, matrix.dtype] = matrix._base


@contextmanager
def scratch(like: Tensor, count: int = 1) -> Iterator[list[Tensor]]:
    """Uninitialised matrices of the shape and precision of `like`, valid inside the block."""
    n, m = like.shape
    whole = acquire("scratch", count * n, m, like, like.dtype)
    try:
        yield list(whole.view(count, n, m))
    finally:
        release("scratch", whole)


def empty_cache() -> None:
    """Return this thread's scratch memory to the system; the next pass takes fresh memory.

    Between steps a pass's buffer stays allocated (128 MiB at most on a CPU), and so does the memory of scores that are
    stored from forward to backward (the byte budget at most).

    Example:
        >>> from dro_temp import kernels
        >>> kernels.empty_cache()
    """
    _free.pieces.clear()
