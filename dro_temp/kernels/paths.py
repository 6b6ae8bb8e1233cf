"""The ways through a kernel, by name."""

from collections.abc import Callable
from typing import Any

from dro_temp._typing import Features
from dro_temp.kernels import eager, pairs, streaming
from dro_temp.kernels.pairs import LogSums
from dro_temp.kernels.rows import LogMeanExp, Products
from dro_temp.kernels.triton_device import fused_passes, triton_runs_on

__all__ = ["PAIR_PATHS", "PATHS", "check_impl", "triton_runs_on"]


def check_impl(impl: Any) -> Any:
    """Return it, or raise where there is no such path."""
    names = ("auto", *PATHS)
    if impl not in names:
        raise ValueError(f"expected impl to be one of {list(names)}, received {impl!r}. Pass impl='auto'.")
    return impl


def _triton_rows(products: Products, *args: Any, **options: Any) -> LogMeanExp:
    passes = fused_passes(products.queries.device)
    return streaming.log_mean_exp_rows(products, *args, **options, passes=passes)


#: Log-mean-exp of rows, by path; all have one signature.
PATHS: dict[str, Callable[..., LogMeanExp]] = {
    "eager": eager.log_mean_exp_rows,
    "chunked": streaming.log_mean_exp_rows,
    "triton": _triton_rows,
}


def _triton_pairs(queries: Features, *args: Any, **options: Any) -> LogSums:
    return pairs.log_sums_of_pairs(queries, *args, **options, passes=fused_passes(queries.device))


#: Log-sums of both sides of pairs, by path.
PAIR_PATHS: dict[str, Callable[..., LogSums]] = {
    "eager": eager.log_sums_of_pairs,
    "chunked": pairs.log_sums_of_pairs,
    "triton": _triton_pairs,
}
