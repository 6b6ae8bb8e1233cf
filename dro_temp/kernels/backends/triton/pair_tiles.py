r"""Pairs without their scores in memory: a product whose tiles are reduced, or turned into gradients, on the chip.

    sum_tiles_kernel    s = q k^T by tiles            row sums of each tile     [column tiles  3  n]
                                                      column sums of each tile  [row tiles  3  m]
    merge_tiles_kernel  sums of all tiles of a side   maximum, sum, mean, log-sum and slope of each row or column
    grad_tiles_kernel   the same tiles once more      G, [n m] in the precision of the two products that follow

A sum is three numbers: the largest score M, sum_j e^((s_j - M) / tau) and the same sum weighted by (s_j - M). The
pair's own score, column `offset + i` of row i, is in neither side's sum. Sums are merged in a fixed order: the same
input gives the same bits.

Tiles of 128 x 128, 64 deep, with four warps and three stages, were the fastest of twenty for features of width 512
and 1,024 in bfloat16 (H200, Triton 3.6, 2026-11-27): two programs share a multiprocessor, and one multiplies while the
other sums. Of 2.3 ms at 16,384 pairs of width 512 the sums take 0.74, G 0.74, the two products 0.67 and the merges
0.03; a bare product of that size takes 0.43. With 256 x 128 and eight warps the sums take 1.02 and G 0.95; at width
1,024 they take 1.43 and 1.33 in place of 1.14 and 1.10. Tile descriptors (TMA) changed nothing in a prototype.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import Features, PerRow, Scores
from dro_temp.kernels.backends.protocol import Groups, PairGradient, SideSums
from dro_temp.kernels.backends.triton.launch import launch, pointers_to_groups, row_stride, vector
from dro_temp.kernels.backends.triton.online import LOG2E, LOWEST, excluded_tile, reduce_lanes

# In place of scores that are not summed: below all others, though finite at every rate.
NO_SCORE = tl.constexpr(-1e30)
# Row tiles whose programs run one after another, so that they find the same keys in the cache.
GROUP = 8
# Tile of partial sums that one program merges at a time: sums of tiles by rows.
MERGED_TILES, MERGED_ROWS = 16, 32
# Float32 products run without tensor cores here, slower than the library's; up to that many scores, launches are what
# a step waits for, and one kernel replaces a dozen.
FEW_SCORES = 2**22
# The first generation with bfloat16 tensor cores.
_FIRST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a tile, and how a program computes it."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def meta(self, features: Features) -> dict[str, int | bool]:
        """Arguments of a kernel for these features."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DEPTH": self.depth,
            "WHOLE_DEPTH": features.shape[1] % self.depth == 0,
            # The interpreter would multiply the bits of bfloat16 as integers.
            "WIDENS": not features.is_cuda,
            "GROUP": GROUP,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


LARGE = Tile(128, 128, 64, warps=4, stages=3)
# Stages of large tiles take 98 KB of a multiprocessor's memory; these take 49.
MEDIUM = Tile(128, 128, 32, warps=8, stages=3)
SMALL = Tile(32, 32, 32, warps=4, stages=2)
_SHARED_BYTES_OF_LARGE = (LARGE.rows + LARGE.columns) * LARGE.depth * 2 * LARGE.stages


@functools.cache
def _has_room(device: torch.device, size: int) -> bool:
    """Whether a program may take that many bytes of shared memory."""
    if device.type != "cuda":
        return True
    properties: Any = torch.cuda.get_device_properties(device)
    return bool(properties.shared_memory_per_block_optin >= size)


def choose_tile(n: int, m: int, dtype: torch.dtype, device: torch.device) -> Tile:
    """The tile for that many rows and columns; small ones where larger ones would leave the chip idle."""
    if dtype == torch.float32 or n * m < 2**20:
        return SMALL
    return LARGE if _has_room(device, _SHARED_BYTES_OF_LARGE) else MEDIUM


def takes(queries: Features, keys: Features) -> bool:
    """See `FusedPairs.takes`."""
    if queries.dtype != keys.dtype:
        return False
    if queries.is_cuda and torch.cuda.get_device_capability(queries.device) < _FIRST_CAPABILITY:
        return False
    few = len(queries) * len(keys) <= FEW_SCORES
    return queries.dtype in (torch.bfloat16, torch.float16) or (queries.dtype == torch.float32 and few)


@triton.jit  # type: ignore[untyped-decorator]
def place_of_tile(n, m, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Row and column number of this program's tile, by groups of `GROUP` rows of tiles."""
    row_tiles, column_tiles = tl.cdiv(n, ROWS), tl.cdiv(m, COLUMNS)
    program = tl.program_id(0)
    width = GROUP * column_tiles
    first = program // width * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    return first + program % width % height, program % width // height


@triton.jit  # type: ignore[untyped-decorator]
def tile_of_scores(  # type: ignore[no-untyped-def]
    queries,
    keys,
    rows,
    columns,
    n,
    m,
    d,
    query_stride,
    key_stride,
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
    WHOLE_DEPTH: tl.constexpr,  # noqa: N803
    WIDENS: tl.constexpr,  # noqa: N803
):
    """`queries @ keys.T` at some rows and columns, in float32; rows and columns outside repeat the first."""
    depth = tl.arange(0, DEPTH)
    rows, columns = tl.where(rows < n, rows, 0).to(tl.int64), tl.where(columns < m, columns, 0).to(tl.int64)
    x = queries + rows[:, None] * query_stride + depth[None, :]
    y = keys + columns[None, :] * key_stride + depth[:, None]
    scores = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, d, DEPTH):
        if WHOLE_DEPTH:
            a, b = tl.load(x), tl.load(y)
        else:
            inside = first + depth < d
            a = tl.load(x, mask=inside[None, :], other=0.0)
            b = tl.load(y, mask=inside[:, None], other=0.0)
        if WIDENS:
            a, b = a.to(tl.float32), b.to(tl.float32)
        scores = tl.dot(a, b, scores, input_precision="ieee")
        x += DEPTH
        y += DEPTH
    return scores


@triton.jit  # type: ignore[untyped-decorator]
def store_sums(scores, tau, parts, tile, at, size, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of a tile along an axis, as the tile's part of `parts`, [tiles 3 size]."""
    inside = at < size
    rate = LOG2E / tl.expand_dims(tl.load(tau + at, mask=inside, other=1.0), axis)
    highest = tl.max(scores, axis)
    # One multiply-add per score, and no second copy of the tile: with its product with the weights it would not fit
    # the registers. What that rounds is less than what the scores, sums of products, were rounded by.
    weight = tl.exp2(scores * rate - tl.expand_dims(highest, axis) * rate)
    total = tl.sum(weight, axis)
    moment = tl.sum(weight * scores, axis) - highest * total
    # Where the tile has no score but the pair's own, its sums mean nothing. NaN stays.
    none = (highest <= NO_SCORE) & (total == total)
    to = parts + tile.to(tl.int64) * 3 * size + at
    tl.store(to, highest, mask=inside)
    tl.store(to + size, tl.where(none, 0.0, total), mask=inside)
    tl.store(to + 2 * size, tl.where(none, 0.0, moment), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def sum_tiles_kernel(  # type: ignore[no-untyped-def]
    queries,  # [n d], rows `query_stride` apart
    keys,  # [m d], rows `key_stride` apart
    tau_rows,  # [n]
    tau_columns,  # [m]
    row_parts,  # [column tiles 3 n]
    column_parts,  # [row tiles 3 m]
    paired_scores,  # [n]
    row_groups,  # [n]
    column_groups,  # [m]
    n,
    m,
    d,
    query_stride,
    key_stride,
    offset,
    HAS_GROUPS: tl.constexpr,  # noqa: N803
    OF_COLUMNS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
    WHOLE_DEPTH: tl.constexpr,  # noqa: N803
    WIDENS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
):
    """One tile: its sums of rows and of columns."""
    row_tile, column_tile = place_of_tile(n, m, ROWS, COLUMNS, GROUP)
    rows, columns = row_tile * ROWS + tl.arange(0, ROWS), column_tile * COLUMNS + tl.arange(0, COLUMNS)
    s = tile_of_scores(
        queries,
        keys,
        rows,
        columns,
        n,
        m,
        d,
        query_stride,
        key_stride,
        ROWS,
        COLUMNS,
        DEPTH,
        WHOLE_DEPTH,
        WIDENS,
    )
    first_row, first_column = row_tile * ROWS, column_tile * COLUMNS
    # Most tiles have neither the pairs' own scores nor an edge.
    has_own = (first_row + offset < first_column + COLUMNS) & (first_row + offset + ROWS > first_column)
    if has_own:
        own = rows + offset
        is_own = own[:, None] == columns[None, :]
        is_here = (rows < n) & (own >= first_column) & (own < first_column + COLUMNS)
        tl.store(paired_scores + rows, tl.sum(tl.where(is_own, s, 0.0), 1), mask=is_here)
        s = tl.where(is_own, NO_SCORE, s)
    if HAS_GROUPS:
        s = tl.where(excluded_tile(row_groups, column_groups, rows, columns, n, m), NO_SCORE, s)
    if (first_row + ROWS > n) | (first_column + COLUMNS > m):
        s = tl.where((rows < n)[:, None] & (columns < m)[None, :], s, NO_SCORE)
    store_sums(s, tau_rows, row_parts, column_tile, rows, n, 1)
    if OF_COLUMNS:
        store_sums(s, tau_columns, column_parts, row_tile, columns, m, 0)


@triton.jit  # type: ignore[untyped-decorator]
def merge_tiles_kernel(  # type: ignore[no-untyped-def]
    parts,  # [tiles 3 size]
    tau,  # [size]
    paired_scores,  # [size]
    maxima,  # [size], updated
    sums,  # [size], updated
    means,  # [size], updated; relative to the maximum
    log_sums,  # [size]
    slopes,  # [size]
    tiles,
    size,
    RUNNING: tl.constexpr,  # noqa: N803
    TILES: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Sums of all tiles; RUNNING: and of those before."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < size
    temperature = tl.load(tau + at, mask=inside, other=1.0)
    rate = LOG2E / temperature
    if RUNNING:
        highest = tl.load(maxima + at, mask=inside, other=0.0)
        total = tl.load(sums + at, mask=inside, other=0.0)
        moment = tl.load(means + at, mask=inside, other=0.0) * total
    else:
        highest, total, moment = tl.full([COLUMNS], LOWEST, tl.float32), rate * 0.0, rate * 0.0
    for first in range(0, tiles, TILES):
        tile = (first + tl.arange(0, TILES)).to(tl.int64)
        mask = (tile < tiles)[:, None] & inside[None, :]
        part = parts + tile[:, None] * 3 * size + at[None, :]
        part_max = tl.load(part, mask=mask, other=LOWEST)
        part_sum = tl.load(part + size, mask=mask, other=0.0)
        part_moment = tl.load(part + 2 * size, mask=mask, other=0.0)
        top, other_sum, other_moment = reduce_lanes(part_max, part_sum, part_moment, rate[None, :], 0)
        new = tl.maximum(highest, top)
        ours, theirs = highest - new, top - new
        decay, share = tl.exp2(ours * rate), tl.exp2(theirs * rate)
        moment = (moment + ours * total) * decay + (other_moment + theirs * other_sum) * share
        total = total * decay + other_sum * share
        highest = new
    none = total == 0.0
    mean = moment / tl.where(none, 1.0, total)
    paired = tl.load(paired_scores + at, mask=inside, other=0.0)
    log_sum = (highest - paired) / temperature + tl.log(total)
    slope = -(mean + (highest - paired)) / (temperature * temperature)
    tl.store(maxima + at, highest, mask=inside)
    tl.store(sums + at, total, mask=inside)
    tl.store(means + at, mean, mask=inside)
    tl.store(log_sums + at, tl.where(none, -float("inf"), log_sum), mask=inside)
    tl.store(slopes + at, tl.where(none, 0.0, slope), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def load_side(tau, maxima, shares, at, size, HAS_GROUPS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Rate, maximum and share of some rows or columns."""
    inside = at < size
    rate = LOG2E / tl.load(tau + at, mask=inside, other=1.0)
    # Rows outside have a share of zero, and a maximum above every score: no weight overflows.
    highest = tl.load(maxima + at, mask=inside, other=-NO_SCORE)
    if HAS_GROUPS:  # and so do those that groups leave nothing
        highest = tl.where(highest <= NO_SCORE, -NO_SCORE, highest)
    return rate, highest, tl.load(shares + at, mask=inside, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def grad_tiles_kernel(  # type: ignore[no-untyped-def]
    queries,  # [n d], rows `query_stride` apart
    keys,  # [m d], rows `key_stride` apart
    tau_rows,  # [n]
    max_rows,  # [n]
    share_rows,  # [n]
    tau_columns,  # [m]
    max_columns,  # [m]
    share_columns,  # [m]
    paired_grad,  # [n]
    row_groups,  # [n]
    column_groups,  # [m]
    gradients,  # [n m], contiguous
    n,
    m,
    d,
    query_stride,
    key_stride,
    offset,
    HAS_GROUPS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
    WHOLE_DEPTH: tl.constexpr,  # noqa: N803
    WIDENS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
):
    """One tile: the rows' share plus the columns' share; the pair's own gradient on the diagonal."""
    row_tile, column_tile = place_of_tile(n, m, ROWS, COLUMNS, GROUP)
    rows, columns = row_tile * ROWS + tl.arange(0, ROWS), column_tile * COLUMNS + tl.arange(0, COLUMNS)
    s = tile_of_scores(
        queries,
        keys,
        rows,
        columns,
        n,
        m,
        d,
        query_stride,
        key_stride,
        ROWS,
        COLUMNS,
        DEPTH,
        WHOLE_DEPTH,
        WIDENS,
    )
    if HAS_GROUPS:  # of weight zero; a tile of zeros instead, at the end, would not fit the registers
        s = tl.where(excluded_tile(row_groups, column_groups, rows, columns, n, m), NO_SCORE, s)
    rate, highest, share = load_side(tau_rows, max_rows, share_rows, rows, n, HAS_GROUPS)
    g = share[:, None] * tl.exp2(s * rate[:, None] - (highest * rate)[:, None])
    rate, highest, share = load_side(tau_columns, max_columns, share_columns, columns, m, HAS_GROUPS)
    g += share[None, :] * tl.exp2(s * rate[None, :] - (highest * rate)[None, :])
    own = tl.load(paired_grad + rows, mask=rows < n, other=0.0)
    g = tl.where((rows + offset)[:, None] == columns[None, :], own[:, None], g)
    to = gradients + rows.to(tl.int64)[:, None] * m + columns[None, :]
    mask = (rows < n)[:, None] & (columns < m)[None, :]
    tl.store(to, g.to(gradients.dtype.element_ty), mask=mask)


def by_rows(features: Features) -> Features:
    """Features whose numbers lie side by side in a row."""
    return features if features.stride(1) == 1 else features.contiguous()


def sum_tiles(
    queries: Features,
    keys: Features,
    tau_rows: PerRow,
    tau_columns: Tensor | None,
    *,
    offset: int,
    rows: SideSums,
    groups: Groups | None = None,
) -> Tensor | None:
    """See `FusedPairs.sum_tiles`."""
    n, d, m = *queries.shape, len(keys)
    queries, keys = by_rows(queries), by_rows(keys)
    tile = choose_tile(n, m, queries.dtype, queries.device)
    row_tiles, column_tiles = triton.cdiv(n, tile.rows), triton.cdiv(m, tile.columns)
    row_parts = tau_rows.new_empty((column_tiles, 3, n))
    column_parts = None if tau_columns is None else tau_rows.new_empty((row_tiles, 3, m))
    launch(
        sum_tiles_kernel,
        row_tiles * column_tiles,
        queries,
        keys,
        vector(tau_rows, rows.log_sum),
        tau_rows if tau_columns is None else vector(tau_columns, rows.log_sum),
        row_parts,
        row_parts if column_parts is None else column_parts,
        rows.paired_score,
        *pointers_to_groups(groups, tau_rows),
        n,
        m,
        d,
        row_stride(queries),
        row_stride(keys),
        offset,
        HAS_GROUPS=groups is not None,
        OF_COLUMNS=tau_columns is not None,
        **tile.meta(queries),
    )
    merge_tiles(row_parts, tau_rows, rows, running=False)
    return column_parts


def merge_tiles(parts: Tensor, tau: Tensor, sums: SideSums, *, running: bool) -> None:
    """See `FusedPairs.merge_tiles`."""
    tiles, _, size = parts.shape
    launch(
        merge_tiles_kernel,
        triton.cdiv(size, MERGED_ROWS),
        parts,
        vector(tau, sums.log_sum),
        sums.paired_score,
        sums.maximum,
        sums.sum_exp,
        sums.mean_excess,
        sums.log_sum,
        sums.slope,
        tiles,
        size,
        RUNNING=running,
        TILES=MERGED_TILES,
        COLUMNS=MERGED_ROWS,
        num_warps=1,
    )


def write_pair_gradient(
    queries: Features,
    keys: Features,
    gradient: PairGradient,
    *,
    offset: int,
    out: Scores,
    groups: Groups | None = None,
) -> None:
    """See `FusedPairs.write_pair_gradient`."""
    n, d, m = *queries.shape, len(keys)
    queries, keys = by_rows(queries), by_rows(keys)
    tile = choose_tile(n, m, queries.dtype, queries.device)
    sides = [x for side in (gradient.rows, gradient.columns) for x in (side.tau, side.maximum, side.share)]
    launch(
        grad_tiles_kernel,
        triton.cdiv(n, tile.rows) * triton.cdiv(m, tile.columns),
        queries,
        keys,
        *(x.contiguous() for x in (*sides, gradient.paired)),
        *pointers_to_groups(groups, gradient.paired),
        out,
        n,
        m,
        d,
        row_stride(queries),
        row_stride(keys),
        offset,
        HAS_GROUPS=groups is not None,
        **tile.meta(queries),
    )
