"""Memory of a pass: rows scored at a time, scores saved for backward, and scratch memory that is reused."""

import functools
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
# On a device, a block takes this share of its memory, within bounds.
_DEVICE_SHARE, _DEVICE_LEAST, DEVICE_MOST = 64, 64 * MIB, 2048 * MIB
_DEVICE_ROWS = 128


@contextmanager
def byte_budget(cached_scores: int | None = None, *, block: int | None = None) -> Iterator[None]:
    """Bytes of scores that a pass may store from forward to backward, and that it computes at a time.

    With a budget for the whole score matrix backward costs two matrix products, without one three. Larger blocks are
    faster on a GPU: each one reads and writes the float32 gradient of the keys. The setting applies to the current
    context; None leaves it as it is.

    Args:
        cached_scores: bytes, >= 0; 0 always computes twice. The default is 512 MiB.
        block: bytes, > 0, of a block of scores on a GPU, of at least 128 rows. By default 1/64 of the card's memory,
            between 64 MiB and 2 GiB; where that much is not free, half of it, and so on. Sums over rows are added up
            block by block: their last digits may differ between cards.

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
    most: int = DEVICE_MOST,
) -> int:
    """Number of rows that are scored at a time; at least one.

    Args:
        n: rows in all.
        row_bytes: bytes of a row's scores.
        device: of the scores.
        sums_over_rows: whether a product sums over the block's rows, which is efficient for many.
        stored: whether the blocks are parts of a stored matrix.
        most: bytes of a block on a device.
    """
    row_bytes = max(row_bytes, 1)
    if device.type == "cpu":
        rows = _CPU_STORED_ROWS if stored else _CPU_ROWS if sums_over_rows else _CPU_ROWS_NO_SUMS
        rows = max(rows, _CPU_CACHE // row_bytes)
        rows = max(min(rows, _CPU_BLOCK // row_bytes), _CPU_MIN_ROWS)
    else:
        rows = max(min(device_block(device), most) // row_bytes, _DEVICE_ROWS)
    if rows < n:  # even blocks: the last one should not be a sliver
        rows = -(-n // -(-n // rows))
    return max(min(rows, n), 1)


def device_block(device: torch.device) -> int:
    """Bytes of a block of scores on a device."""
    asked = _BLOCK_BYTES.get()
    if asked is not None:
        return asked
    if device.type != "cuda":
        return DEVICE_MOST
    return min(max(_device_memory(device) // _DEVICE_SHARE, _DEVICE_LEAST), DEVICE_MOST)


@functools.cache
def _device_memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


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


def acquire_block(rows: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A block for that many rows of scores, or for fewer where a device has no room for them."""
    while True:
        try:
            return acquire("scores", rows, columns, like, dtype)
        except torch.cuda.OutOfMemoryError as error:
            if rows <= _DEVICE_ROWS:
                size = rows * columns * dtype.itemsize / MIB
                raise torch.cuda.OutOfMemoryError(
                    f"expected {size:,.0f} MiB of free memory on {like.device} for a block of {rows} rows of "
                    f"{columns:,} scores, the smallest, received less. Pass fewer rows at a time, shorter texts, say; "
                    "checkpoint the host's activations; or choose half-precision scores, "
                    "score_dtype=torch.bfloat16, where temperatures are near one."
                ) from error
            rows = max(rows // 2, _DEVICE_ROWS)


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
