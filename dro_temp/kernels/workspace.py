"""Scratch memory that is used again: a fresh page costs the processor more than the arithmetic that fills it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _Free(threading.local):
    """What this thread has given back, at most one piece of each precision and purpose."""

    def __init__(self) -> None:
        self.pieces: dict[tuple[str, torch.dtype], Tensor] = {}


_free = _Free()


def borrow(purpose: str, rows: int, columns: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised matrix: memory given back earlier, if it is large enough.

    Only for the processor: a device's own allocator keeps what is freed.

    Args:
        purpose: memory is used again for the same purpose only.
        rows: rows.
        columns: columns.
        like: a tensor on the wanted device.
        dtype: precision.
    """
    if like.device.type != "cpu" or torch.is_inference_mode_enabled():
        return like.new_empty((rows, columns), dtype=dtype)
    piece = _free.pieces.pop((purpose, dtype), None)
    if piece is None or piece.numel() < rows * columns:
        piece = torch.empty(rows * columns, dtype=dtype)
    return piece[: rows * columns].view(rows, columns)


def give_back(purpose: str, matrix: Tensor) -> None:
    """The matrix is no longer used; the next one that is borrowed may have its memory."""
    if matrix.device.type == "cpu" and matrix._base is not None:
        _free.pieces[purpose, matrix.dtype] = matrix._base


@contextmanager
def scratch(like: Tensor, count: int = 1) -> Iterator[list[Tensor]]:
    """Uninitialised matrices of that shape and precision, for as long as the block lasts."""
    n, m = like.shape
    whole = borrow("scratch", count * n, m, like, like.dtype)
    try:
        yield list(whole.view(count, n, m))
    finally:
        give_back("scratch", whole)


def free_workspace() -> None:
    """Return this thread's scratch memory to the system; the next sweep takes fresh memory.

    Between steps a sweep's buffer stays (128 MiB at most on the processor), and so does memory for scores that are
    kept from forward to backward (the byte budget at most).

    Example:
        >>> from dro_temp import kernels
        >>> kernels.free_workspace()
    """
    _free.pieces.clear()
