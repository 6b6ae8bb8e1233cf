"""Compiles every kernel for an NVIDIA H100, which needs no GPU: the interpreter is more forgiving than the compiler.

Run in a process of its own: kernels are either interpreted or compiled, and that is settled when Triton is imported.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dro_temp.kernels.backends.triton import (
    columns,
    log_table,
    pair_logits,
    pair_tiles,
    readout,
    row_numbers,
    row_profile,
    rows,
    sigmoid_tiles,
    temperature_table,
    tilted_rows,
)
from dro_temp.kernels.backends.triton.launch import row_tile, stripe_tile

SHARED_BYTES = 227 * 2**10
H100 = GPUTarget("cuda", 90, 32)
SIZES = {"n", "m", "d", "size", "stride", "gradient_stride", "query_stride", "key_stride", "chunks", "tiles"}
SIZES |= {"offset", "k", "pooled_stride", "classes"}
NUMBERS = {
    "log_m",
    "cap",
    "log_keep",
    "log_take",
    "largest",
    "lower",
    "upper",
    "lr",
    "beta",
    "clip",
    "low",
    "high",
}
# Scores, and gradients in their place, may be of less precision than sums over them.
OF_SCORES = {"scores", "gradients", "x", "queries", "keys", "features"}
OF_KIND = {
    "target": "*i64",
    "index": "*i64",
    "numbers": "*i64",
    "extremes": "*i64",
    "counts": "*i1",
    "labels": "*i64",
    "mask": "*i1",
    "targets": "*i64",
    "wrongs": "*i64",
    "found": "*i8",
    "any_found": "*i32",
    "gammas": "*fp64",
    "row_groups": "*i32",
    "column_groups": "*i32",
}
# The launcher makes constants of sizes that are one, and reads aligned rows four numbers at a time.
CASES = ((1, "fp64", "fp64"), (2**18, "fp32", "fp32"), (2**18, "fp32", "bf16"))


def kernels(m):
    stripe = stripe_tile(m)
    merged = {"CHUNKS": columns.MERGED_CHUNKS, "COLUMNS": columns.MERGED_COLUMNS, "num_warps": 1}
    yield rows.softmax_kernel, {"STORES": True, **row_tile(m)}
    flags = ("HAS_BIAS", "SUMS", "VARIANCE", "WRITES", "OF_MEAN", "HAS_GROUPS")
    everything = {**dict.fromkeys(flags, True), "CAP": 1, "WITH_TARGET": False}
    yield tilted_rows.tilted_rows_kernel, {**everything, **row_tile(m)}
    yield tilted_rows.scale_kernel, {"TILE": tilted_rows.SCALE_TILE, "num_warps": 8}
    usual = {
        **everything,
        **dict.fromkeys(("HAS_BIAS", "VARIANCE", "OF_MEAN", "HAS_GROUPS"), False),
        "CAP": 0,
        "WITH_TARGET": True,
    }
    yield tilted_rows.tilted_rows_kernel, {**usual, **row_tile(m)}
    yield row_profile.row_profile_kernel, {"WITH_TARGET": False, **row_tile(m)}
    yield columns.chunk_kernel, {"CHUNK": columns.CHUNK, **stripe}
    yield columns.merge_kernel, merged
    yield pair_logits.pair_logits_grad_kernel, stripe


def tiled_kernels():
    """Kernels over features, and the features' precision."""
    merged = {"TILES": pair_tiles.MERGED_TILES, "COLUMNS": pair_tiles.MERGED_ROWS, "num_warps": 1}
    yield pair_tiles.merge_tiles_kernel, {"RUNNING": True, **merged}, "fp32"
    for tile, features in (
        (pair_tiles.LARGE, torch.bfloat16),
        (sigmoid_tiles._SUMMED, torch.bfloat16),
        (pair_tiles.MEDIUM, torch.float16),
        (pair_tiles.SMALL, torch.float32),
    ):
        options = {"WIDENS": False, "HAS_GROUPS": tile == pair_tiles.MEDIUM}
        meta = tile.meta(torch.empty(1, tile.depth, dtype=features)) | options
        name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[features]
        yield pair_tiles.sum_tiles_kernel, {"OF_COLUMNS": True, **meta}, name
        yield pair_tiles.grad_tiles_kernel, meta, name
        both = {"OF_COLUMNS": True, **meta}
        yield sigmoid_tiles.sum_sigmoid_kernel, {"COUNT": 3, **both}, name
        yield sigmoid_tiles.grad_sigmoid_kernel, both, name
        if tile == pair_tiles.SMALL:  # rows alone, and losses alone
            one = {"OF_COLUMNS": False, **meta}
            yield sigmoid_tiles.sum_sigmoid_kernel, {"COUNT": 1, **both}, name
            yield sigmoid_tiles.sum_sigmoid_kernel, {"COUNT": 3, **one}, name
            yield sigmoid_tiles.grad_sigmoid_kernel, one, name


def table_kernels():
    """Kernels over a table of samples, which is float32."""
    for scheduled in (False, True):
        meta = {"SCHEDULED": scheduled, "ROWS": log_table.ROWS, "OTHERS": log_table.OTHERS, "num_warps": 4}
        yield log_table.average_kernel, meta
    yield log_table.write_kernel, {"ROWS": log_table.OTHERS, "num_warps": 1}
    yield log_table.gradient_kernel, {"ROWS": log_table.OTHERS, "num_warps": 1}
    yield temperature_table.step_kernel, {"ROWS": log_table.ROWS, "OTHERS": log_table.OTHERS, "num_warps": 4}


def row_kernels():
    """Kernels of a number per row; features are in bfloat16 as well."""
    for some in (False, True):
        yield row_numbers.labels_kernel, {"IGNORE": -100, "MASKED": some, "ROWS": row_numbers.LABEL_ROWS}
        yield row_numbers.spread_kernel, {"SOME": some, "TILE": row_numbers.SPREAD_TILE, "num_warps": 8}
        tile = {"ROWS": row_numbers.FINITE_ROWS, "COLUMNS": row_numbers.FINITE_COLUMNS}
        yield row_numbers.finite_kernel, {"FEATURES": some, "SOME": some, **tile}
        yield readout.bounded_kernel, {"GRADIENT": some, "ROWS": readout.BOUNDED_ROWS, "num_warps": 1}
    for k in (5, 256, 1000, readout.WIDEST):
        yield readout.pooled_kernel, readout.rows_and_columns(k)
        yield readout.pooled_gradient_kernel, readout.rows_and_columns(k)


def compile_kernel(kernel, meta, number: str, scores: str, m: int) -> None:
    """As the launcher would for rows of m columns."""
    constants = {name: value for name, value in meta.items() if name not in ("num_warps", "num_stages")}
    if m == 1:
        constants |= dict.fromkeys(SIZES & set(kernel.arg_names), 1)
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        kind = f"*{scores if name in OF_SCORES else number}"
        kind = "i32" if name in SIZES else "fp32" if name in NUMBERS else OF_KIND.get(name, kind)
        signature[name] = "constexpr" if name in constants else kind
        if name not in constants and name not in NUMBERS and (m % 16 == 0 or name not in SIZES):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {name: meta[name] for name in ("num_warps", "num_stages") if name in meta}
    compiled = triton.compile(source, target=H100, options=options)
    assert compiled.metadata.shared <= SHARED_BYTES


if __name__ == "__main__":
    for width, number, scores in CASES:
        for kernel, meta in kernels(width):
            if scores == number or kernel in (tilted_rows.tilted_rows_kernel, row_profile.row_profile_kernel):
                compile_kernel(kernel, meta, number, scores, width)
                print(kernel.fn.__name__, number, scores, width)
    for kernel, meta, features in tiled_kernels():
        compile_kernel(kernel, meta, "fp32", features, 2**18)
        print(kernel.fn.__name__, features, meta.get("ROWS"))
    for kernel, meta in table_kernels():
        compile_kernel(kernel, meta, "fp32", "fp32", 2**18)
        print(kernel.fn.__name__, meta.get("SCHEDULED"))
    for kernel, meta in row_kernels():
        for features in ("fp32", "bf16") if kernel is row_numbers.finite_kernel else ("fp32",):
            compile_kernel(kernel, meta, "fp32", features, 2**18)
        print(kernel.fn.__name__, meta)
