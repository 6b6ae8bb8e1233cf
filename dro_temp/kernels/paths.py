"""The ways through a kernel, by name."""

from collections.abc import Callable
from typing import Any, Literal

from dro_temp._typing import Features, PerRow
from dro_temp.kernels import eager, exchanged, pairs, streaming
from dro_temp.kernels.native_device import c_passes, native_runs_on
from dro_temp.kernels.pairs import LogSums
from dro_temp.kernels.products import work_dtype
from dro_temp.kernels.rows import LogMeanExp, Products
from dro_temp.kernels.triton_device import fused_passes, triton_runs_on

__all__ = ["PAIR_PATHS", "PATHS", "SIDES_PATHS", "check_impl", "fastest_path"]


def fastest_path(queries: Features, keys: Features) -> Literal["triton", "native", "chunked"]:
    """The fastest path that streams there."""
    if triton_runs_on(queries.device):
        return "triton"
    return "native" if native_runs_on(queries.device, work_dtype(queries, keys)) else "chunked"


def check_impl(impl: Any) -> Any:
    """Return it, or raise where there is no such path."""
    names = ("auto", *PATHS)
    if impl not in names:
        raise ValueError(f"expected impl to be one of {list(names)}, received {impl!r}. Pass impl='auto'.")
    return impl


def _triton_rows(products: Products, *args: Any, **options: Any) -> LogMeanExp:
    passes = fused_passes(products.queries.device)
    return streaming.log_mean_exp_rows(products, *args, **options, passes=passes)


def _native_rows(products: Products, *args: Any, **options: Any) -> LogMeanExp:
    passes = c_passes(products.queries.device, work_dtype(products.queries, products.keys))
    return streaming.log_mean_exp_rows(products, *args, **options, passes=passes)


#: Log-mean-exp of rows, by path; all have one signature.
PATHS: dict[str, Callable[..., LogMeanExp]] = {
    "eager": eager.log_mean_exp_rows,
    "chunked": streaming.log_mean_exp_rows,
    "native": _native_rows,
    "triton": _triton_rows,
}


def _triton_pairs(queries: Features, *args: Any, **options: Any) -> LogSums:
    return pairs.log_sums_of_pairs(queries, *args, **options, passes=fused_passes(queries.device))


def _native_pairs(queries: Features, keys: Features, *args: Any, **options: Any) -> LogSums:
    return pairs.log_sums_of_pairs(
        queries, keys, *args, **options, passes=c_passes(queries.device, work_dtype(queries, keys))
    )


#: Log-sums of both sides of pairs, by path.
PAIR_PATHS: dict[str, Callable[..., LogSums]] = {
    "eager": eager.log_sums_of_pairs,
    "chunked": pairs.log_sums_of_pairs,
    "native": _native_pairs,
    "triton": _triton_pairs,
}


def _triton_sides(sides: tuple[Features, Features], *args: Any, **options: Any) -> tuple[PerRow, PerRow]:
    return exchanged.log_sums_of_both_sides(sides, *args, **options, passes=fused_passes(sides[0].device))


def _native_sides(sides: tuple[Features, Features], *args: Any, **options: Any) -> tuple[PerRow, PerRow]:
    passes = c_passes(sides[0].device, work_dtype(*sides))
    return exchanged.log_sums_of_both_sides(sides, *args, **options, passes=passes)


#: Log-sums of this process's rows on both sides of pairs, by path.
SIDES_PATHS: dict[str, Callable[..., tuple[PerRow, PerRow]]] = {
    "chunked": exchanged.log_sums_of_both_sides,
    "native": _native_sides,
    "triton": _triton_sides,
}
