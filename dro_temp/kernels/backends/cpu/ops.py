"""The functions of a backend (see `protocol`): in C for float32 scores on a CPU, in PyTorch otherwise.

Products of bfloat16 factors are in C as well where the CPU multiplies bfloat16: PyTorch would round their sums.
`scores.c` and `products.c` say what each pass reads and writes, and what was tried.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, Scores
from dro_temp.functional.statistics import ScoreProfile
from dro_temp.kernels import products
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.cpu.library import native
from dro_temp.kernels.backends.protocol import ColumnSums, Scorer, SoftmaxPartials
from dro_temp.kernels.memory import acquire

moments = torch_backend.moments

_LOG2_E = math.log2(math.e)
# Keys that are packed at a time in products; threads share whole packs.
_SCORE_PACK, _ACCUMULATE_PACK = 48, 32


# Softmax sums and weights of rows


def softmax_partials_(
    scores: Scores, tau: PerRow, *, mean_excess: bool, factor: torch.dtype | None = None
) -> SoftmaxPartials:
    """See `Backend.softmax_partials_`; the mean excess costs nothing here."""
    if not _fits(scores):
        return torch_backend.softmax_partials_(scores, tau, mean_excess=mean_excess, factor=factor)
    if factor == torch.bfloat16:
        weights = acquire("weights", len(scores), scores.shape[1], scores, torch.bfloat16)
        row_max, sum_exp, excess = _each_row("softmax_partials_bfloat16", scores, 3, tau, out=(weights,))
    else:
        row_max, sum_exp, excess = _each_row("softmax_partials", scores, 3, tau)
        weights = scores.to(factor or scores.dtype)
    return SoftmaxPartials(row_max, sum_exp, excess if mean_excess else None, weights)


def row_sums(scores: Scores, tau: PerRow) -> SoftmaxPartials:
    """See `Backend.row_sums`."""
    if not _fits(scores):
        return torch_backend.row_sums(scores, tau)
    return SoftmaxPartials(*_each_row("row_sums", scores, 3, tau))


def profile(scores: Scores) -> ScoreProfile:
    """See `Backend.profile`."""
    if not _fits(scores):
        return torch_backend.profile(scores)
    return ScoreProfile(*_each_row("profile", scores, 6))


def _each_row(
    name: str, scores: Scores, count: int, *vectors: PerRow, out: tuple[Tensor, ...] = ()
) -> list[PerRow]:
    """`count` vectors, [rows], from the scores and an entry of each input vector per row; `out` is written as well."""
    n, m = scores.shape
    results = [scores.new_empty(n) for _ in range(count)]
    _call(name, scores, n, m, m, vectors, (*out, *results))
    return results


# Both sides of pairs


def column_sums_(scores: Scores, tau: Tensor, sums: ColumnSums) -> None:
    """See `Backend.column_sums_`."""
    if not _fits(scores):
        torch_backend.column_sums_(scores, tau, sums)
        return
    n, m = scores.shape
    _call("column_sums", scores, m, n, n, (tau,), (sums.column_max, sums.sum_exp, sums.moment))


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
    rows = (tau_rows, max_rows, share_rows)
    if not _fits(scores):
        return torch_backend.pair_logits_grad_(scores, *rows, tau_columns, max_columns, share_columns)
    n, m = scores.shape
    vectors = (*rows, _LOG2_E / tau_columns, max_columns, share_columns)
    _call("pair_logits_grad", scores, n, m, m, vectors)
    return scores


# Products of bfloat16 factors


def scorer(queries: Features, keys: Features) -> Scorer:
    """See `Backend.scorer`."""
    fits = (
        queries.dtype == keys.dtype == torch.bfloat16 and _rows_are_pairs(queries) and _rows_are_pairs(keys)
    )
    library = _bfloat16_library() if fits else None
    if library is None:
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
                *(c_int64(x) for x in (first * _SCORE_PACK, min(last * _SCORE_PACK, m), d)),
                c_float(scale),
                *matrix(out),
            )

        packs = -(-m // _SCORE_PACK)
        in_threads(work, packs, thread_count(packs, _SCORE_PACK * len(queries)))
        return out

    return score


def accumulate_(total: Tensor, weights: Scores, x: Features, factor: torch.dtype, *, first: bool) -> None:
    """See `Backend.accumulate_`."""
    fits = factor == torch.bfloat16 and total.dtype == torch.float32 and total.numel() > 0
    library = _bfloat16_library() if fits and rows_are_dense(total) else None
    if library is None:
        products.accumulate_(total, weights, x, factor, first=first)
        return
    weights, x = weights.to(factor), x.to(factor).contiguous()
    weights = weights if rows_are_dense(weights) else weights.contiguous()
    (n, d), m = x.shape, len(total)
    packed_rows = x.new_empty(library.packed_size(c_int64(n), c_int64(d)))  # shared by all threads
    library.pack_rows(*matrix(x), c_int64(n), c_int64(d), c_void_p(packed_rows.data_ptr()))

    def work(start: int, stop: int) -> None:
        library.accumulate_bfloat16(
            *matrix(weights),
            c_int64(n),
            c_void_p(packed_rows.data_ptr()),
            *(c_int64(x) for x in (start * _ACCUMULATE_PACK, min(stop * _ACCUMULATE_PACK, m), d, not first)),
            *matrix(total),
        )

    packs = -(-m // _ACCUMULATE_PACK)
    in_threads(work, packs, thread_count(packs, _ACCUMULATE_PACK * n))


def _bfloat16_library() -> Any:
    """The C library if the CPU multiplies bfloat16, else None."""
    library: Any = native().library
    if library is None or not library.multiplies_bfloat16():
        return None
    library.packed_size.restype = c_int64
    return library


def _rows_are_pairs(x: Features) -> bool:
    """Whether C can read the rows of a bfloat16 matrix as pairs of adjacent numbers, 32 bits each."""
    aligned = x.shape[1] % 2 == 0 and rows_are_dense(x) and x.stride(0) % 2 == 0
    return aligned and x.device.type == "cpu" and x.numel() > 0


# Calls into C, in threads


def _fits(scores: Scores) -> bool:
    return scores.device.type == "cpu" and scores.dtype == torch.float32 and scores.numel() > 0


def _call(
    name: str,
    scores: Scores,
    count: int,
    each: int,
    length: int,
    vectors: tuple[Tensor, ...],
    out: tuple[Tensor, ...] = (),
) -> None:
    """Call a function of the library on `count` rows or columns of `each` scores, in threads if that is worth it.

    Args:
        name: of the function.
        scores: a block of scores with contiguous rows; they need not be adjacent.
        count: number of rows or columns.
        each: scores of one of them.
        length: the function's length argument.
        vectors: inputs; a temperature for all rows may be one number, expanded.
        out: float32 tensors that are written.
    """
    assert scores.stride(1) == 1 or scores.shape[1] == 1, f"strides {scores.stride()}"
    library: Any = native().library
    function = getattr(library, name)
    start = (c_void_p(scores.data_ptr()), c_int64(scores.stride(0)))
    inputs = [x.detach().to(torch.float32).contiguous() for x in vectors]
    pointers = [c_void_p(x.data_ptr()) for x in (*inputs, *out)]

    def work(first: int, last: int) -> None:
        function(*start, c_int64(first), c_int64(last), c_int64(length), *pointers)

    threads = torch.get_num_threads()
    threads = 1 if threads == 1 else thread_count(count, each)
    if threads == 1:
        function(*start, c_int64(0), c_int64(count), c_int64(length), *pointers)
    else:
        in_threads(work, count, threads)


def rows_are_dense(x: Tensor) -> bool:
    """Whether each row is contiguous, so that one stride describes the matrix."""
    return x.dim() == 2 and (x.stride(1) == 1 or x.shape[1] == 1 or x.numel() == 0)


def matrix(x: Tensor) -> tuple[c_void_p, c_int64]:
    """Address and row stride of a matrix that `rows_are_dense`, which is all that C supports."""
    if not rows_are_dense(x):
        raise AssertionError(f"C was passed a matrix of shape {tuple(x.shape)} with strides {x.stride()}")
    return c_void_p(x.data_ptr()), c_int64(x.stride(0))


# Scores that are worth a thread: starting one takes about 50 microseconds.
_THREAD_SHARE = 2**17


def thread_count(count: int, scores_each: int) -> int:
    """Threads that pay for work on `count` rows or columns of so many scores each."""
    return min(torch.get_num_threads(), max(count * scores_each // _THREAD_SHARE, 1), max(count, 1))


def in_threads(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call `work(first, last)` on parts of `range(count)` in parallel; ctypes releases Python's lock."""
    first_part, *parts = itertools.pairwise(count * k // threads for k in range(threads + 1))
    others = [_pool(os.getpid(), threads - 1).submit(work, *part) for part in parts]
    work(*first_part)
    for other in others:
        other.result()


@functools.lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # By process: threads do not survive a fork.
    return ThreadPoolExecutor(threads, thread_name_prefix=f"dro_temp-{process}")
