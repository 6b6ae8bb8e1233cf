"""The passes with the plain ones' names and signatures: C for float32 on the processor, PyTorch for all else."""

import math
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels import pair_passes, passes
from dro_temp.kernels.native_passes.library import native
from dro_temp.kernels.native_passes.matrices import matrix
from dro_temp.kernels.native_passes.threads import shared
from dro_temp.kernels.pair_passes import ColumnSums, RowSums
from dro_temp.kernels.passes import Profile, Tilted
from dro_temp.kernels.workspace import borrow

moments = passes.moments

_LOG2_E = math.log2(math.e)


def tilt_(scores: Scores, tau: PerRow, *, excess: bool, factor: torch.dtype | None = None) -> Tilted:
    """See `passes.tilt_`; the excess comes for nothing."""
    if not _fits(scores):
        return passes.tilt_(scores, tau, excess=excess, factor=factor)
    if factor == torch.bfloat16:
        weights = borrow("weights", len(scores), scores.shape[1], scores, torch.bfloat16)
        top, total, mean = _of_rows("tilt_bfloat16", scores, 3, tau, into=(weights,))
    else:
        top, total, mean = _of_rows("tilt", scores, 3, tau)
        weights = scores.to(factor or scores.dtype)
    return Tilted(weights, top, total, mean if excess else None)


def profile(scores: Scores) -> Profile:
    """See `passes.profile`."""
    if not _fits(scores):
        return passes.profile(scores)
    return Profile(*_of_rows("profile", scores, 6))


def sum_rows(scores: Scores, tau: PerRow) -> RowSums:
    """See `pair_passes.sum_rows`."""
    if not _fits(scores):
        return pair_passes.sum_rows(scores, tau)
    return RowSums(*_of_rows("sum_rows", scores, 3, tau))


def sum_columns_(scores: Scores, tau: Tensor, sums: ColumnSums) -> None:
    """See `pair_passes.sum_columns_`."""
    if not _fits(scores):
        pair_passes.sum_columns_(scores, tau, sums)
        return
    n, m = scores.shape
    vectors = [_vector(tau), sums.top, sums.total, sums.moment]

    def work(first: int, last: int) -> None:
        _call("sum_columns", scores, first, last, n, vectors)

    shared(work, m, n)


def couple_(
    scores: Scores,
    tau_rows: PerRow,
    top_rows: PerRow,
    share_rows: PerRow,
    tau_columns: Tensor,
    top_columns: Tensor,
    share_columns: Tensor,
) -> Scores:
    """See `pair_passes.couple_`."""
    rows = (tau_rows, top_rows, share_rows)
    columns = (tau_columns, top_columns, share_columns)
    if not _fits(scores):
        return pair_passes.couple_(scores, *rows, *columns)
    n, m = scores.shape
    vectors = [_vector(x) for x in (*rows, _LOG2_E / tau_columns, top_columns, share_columns)]

    def work(first: int, last: int) -> None:
        _call("couple", scores, first, last, m, vectors)

    shared(work, n, m)
    return scores


def _fits(scores: Scores) -> bool:
    return scores.device.type == "cpu" and scores.dtype == torch.float32 and scores.numel() > 0


def _of_rows(
    name: str, scores: Scores, count: int, *given: PerRow, into: tuple[Tensor, ...] = ()
) -> list[PerRow]:
    """`count` numbers of each row, from the scores and one vector per `given`; `into` is written beside them."""
    n, m = scores.shape
    found = [scores.new_empty(n) for _ in range(count)]
    vectors = [*map(_vector, given), *into, *found]

    def work(first: int, last: int) -> None:
        _call(name, scores, first, last, m, vectors)

    shared(work, n, m)
    return found


def _vector(x: Tensor) -> Tensor:
    """Side by side, in float32: a temperature for all rows may be one number, expanded."""
    return x.detach().to(torch.float32).contiguous()


def _call(name: str, scores: Scores, first: int, last: int, length: int, vectors: list[Tensor]) -> None:
    library: Any = native().library
    getattr(library, name)(
        *matrix(scores),
        *(c_int64(x) for x in (first, last, length)),
        *(c_void_p(x.data_ptr()) for x in vectors),
    )
