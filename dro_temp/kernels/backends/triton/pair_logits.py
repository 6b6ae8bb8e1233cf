"""Gradient with respect to a stripe of scores, [n m], that rows and columns share: one read, one write.

    G_ij = share_i e^((s_ij - max_i) / tau_i) + share_j e^((s_ij - max_j) / tau_j)

Tiles of 16 rows by 128 columns: the six vectors are read once per tile, 512 bytes of a row at a time.
"""

import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.backends.triton.launch import launch, row_stride, stripe_tile, vector
from dro_temp.kernels.backends.triton.online import LOG2E


@triton.jit  # type: ignore[untyped-decorator]
def pair_logits_grad_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `stride` apart; overwritten
    tau_rows,  # [n]
    max_rows,  # [n]
    share_rows,  # [n]
    tau_columns,  # [m]
    max_columns,  # [m]
    share_columns,  # [m]
    n,
    m,
    stride,
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """One tile: the rows' share plus the columns' share."""
    column_tiles = tl.cdiv(m, COLUMNS)
    rows = (tl.program_id(0) // column_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside_rows, inside_columns = rows < n, columns < m
    mask = inside_rows[:, None] & inside_columns[None, :]
    address = scores + rows[:, None] * stride + columns[None, :]
    s = tl.load(address, mask=mask, other=0.0)
    rate = LOG2E / tl.load(tau_rows + rows, mask=inside_rows, other=1.0)
    largest = tl.load(max_rows + rows, mask=inside_rows, other=0.0)
    share = tl.load(share_rows + rows, mask=inside_rows, other=0.0)
    grad = share[:, None] * tl.exp2((s - largest[:, None]) * rate[:, None])
    rate = LOG2E / tl.load(tau_columns + columns, mask=inside_columns, other=1.0)
    largest = tl.load(max_columns + columns, mask=inside_columns, other=0.0)
    share = tl.load(share_columns + columns, mask=inside_columns, other=0.0)
    grad += share[None, :] * tl.exp2((s - largest[None, :]) * rate[None, :])
    tl.store(address, grad, mask=mask)


def pair_logits_grad_(
    scores: Scores,
    tau_rows: PerRow,
    max_rows: PerRow,
    share_rows: PerRow,
    tau_columns: Tensor,
    max_columns: Tensor,
    share_columns: Tensor,
) -> Scores:
    """See `Backend.pair_logits_grad_`."""
    n, m = scores.shape
    sides = (tau_rows, max_rows, share_rows, tau_columns, max_columns, share_columns)
    tile = stripe_tile(m)
    programs = triton.cdiv(n, tile["ROWS"]) * triton.cdiv(m, tile["COLUMNS"])
    vectors = [vector(x, scores) for x in sides]
    launch(pair_logits_grad_kernel, programs, scores, *vectors, n, m, row_stride(scores), **tile)
    return scores
