"""Shared by all launches: sizes of tiles, the device, the layout of arguments."""

from typing import Any

import torch
import triton
from torch import Tensor

from dro_temp.kernels.backends.protocol import Groups

# A row is read in tiles of at most this many columns, by four warps: of nine sizes of tiles and warps the fastest for
# sums, gradients and statistics at 128,256 columns, in bfloat16 and float32 (H200; 4,096 by 16 warps: a fifth slower).
ROW_TILE = 2048
# Stripes are read in tiles of rows by columns; 128 columns are 512 bytes of a row, read at once.
STRIPE_TILE, STRIPE_COLUMNS = 2048, 128


def row_tile(m: int) -> dict[str, int]:
    """Tile and warps for rows of m columns, one program per row."""
    tile = min(triton.next_power_of_2(m), ROW_TILE)
    return {"TILE": tile, "num_warps": max(tile // 512, 1)}


def stripe_tile(m: int) -> dict[str, int]:
    """Rows and columns of a tile of a stripe that is m columns wide."""
    columns = min(triton.next_power_of_2(m), STRIPE_COLUMNS)
    return {"ROWS": STRIPE_TILE // columns, "COLUMNS": columns, "num_warps": 4}


def launch(kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
    """Run programs on the device of the first argument, which need not be the current one."""
    if programs:
        with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
            kernel[(programs,)](*args, **meta)


def vector(x: Tensor, like: Tensor) -> Tensor:
    """Contiguous, in the precision of the scores: a temperature for all rows may be one number, expanded."""
    return x.to(like.dtype).contiguous()


def pointers_to_groups(groups: Groups | None, unread: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous numbers of rows and columns; without groups anything, which is not read."""
    return (unread, unread) if groups is None else (groups[0].contiguous(), groups[1].contiguous())


def row_stride(scores: Tensor) -> int:
    """Distance between rows; columns are contiguous."""
    assert scores.shape[1] == 1 or scores.stride(1) == 1
    return scores.stride(0)
