"""Checks shared by all layers. Every message says what was expected, what arrived, what to type instead."""

import math
import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def check_bounds(tau_min: float, tau_max: float) -> None:
    """Raise unless `0 < tau_min < tau_max < inf`."""
    if not (0.0 < tau_min < tau_max < math.inf):
        raise ValueError(
            f"expected temperature bounds with 0 < tau_min < tau_max < inf, received tau_min={tau_min}, "
            f"tau_max={tau_max}. Widen or swap them, for example tau_min=0.01, tau_max=1.0; "
            "for one fixed value use ConstantTemperature(tau)."
        )


def check_within(name: str, value: float, lower: float, upper: float) -> None:
    """Raise unless `lower <= value <= upper`."""
    if not (lower <= value <= upper):
        raise ValueError(
            f"expected {name} between {lower} and {upper}, received {name}={value}. Pass a value in that range."
        )


def check_positive(name: str, value: float) -> None:
    """Raise unless `0 < value < inf`."""
    if not (0.0 < value < math.inf):
        raise ValueError(f"expected a finite {name} > 0, received {name}={value}. Pass a positive number.")


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int (NumPy's included), or raise unless it is a whole number >= `minimum`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(
            f"expected {name} as an int, received {type(value).__name__} ({value!r}). Pass len(dataset) or the like."
        )
    count = operator.index(value)
    if count < minimum:
        raise ValueError(f"expected {name} >= {minimum}, received {name}={count}. Pass a larger number.")
    return count


def check_kind(name: str, value: Any, kind: type, instead: str) -> None:
    """Raise unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(
            f"expected {name} to be a {kind.__name__}, received {type(value).__name__}. {instead}"
        )


def check_radius(rho: float) -> None:
    """Raise unless `0 <= rho < inf`."""
    if isinstance(rho, bool) or not isinstance(rho, Real):
        raise TypeError(
            f"expected rho as a number, received {type(rho).__name__} ({rho!r}). Pass rho=1.0, say."
        )
    if not (0.0 <= rho < math.inf):
        raise ValueError(
            f"expected a finite radius rho >= 0, received rho={rho}. Useful values lie between 0 and "
            "log(number of outcomes), for example rho=1.0."
        )


def check_feasible(rho: float, support_size: int) -> None:
    """Raise where the KL ball of radius `rho` holds every distribution over the support.

    `KL(p||U) <= log m` for every p, so from `rho = log m` on, dF/dtau = rho - KL is never negative and
    every temperature collapses to tau_min.
    """
    if rho > 0.0 and _holds_everything(rho, support_size):
        raise ValueError(
            f"expected rho < log m, received rho={rho} with m={support_size} outcomes in the support "
            f"(log m = {math.log(max(support_size, 1)):.4g}): the KL ball holds every distribution and the "
            "temperature collapses to tau_min. Lower rho, or raise m: a larger batch (drop_last=True if this "
            "is a short last batch), or a LogMovingAverage estimator, which makes m the size of the data set."
        )


def _holds_everything(rho: float, support_size: int) -> bool:
    if torch.compiler.is_compiling():
        # A bound on the size is one guard for all sizes above it; its logarithm would be a graph for each.
        return support_size <= math.exp(min(rho, 700.0))
    return rho >= math.log(max(support_size, 1))


def check_index(index: Tensor, num_samples: int) -> Tensor:
    """Return `index` as int64, or raise where it is no sample number in [0, num_samples)."""
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(
            f"expected sample numbers of an integer dtype, received {index.dtype}. Pass index.long()."
        )
    index = index.long()
    # Reading values waits for the device, and stops a graph that is being captured or compiled.
    if torch.compiler.is_compiling() or index.numel() == 0:
        return index
    low, high = torch.stack(index.aminmax()).tolist()  # one wait, not two
    if low < 0 or high >= num_samples:
        raise IndexError(
            f"expected sample numbers from 0 to {num_samples - 1}, received numbers from {low} to {high}. "
            f"Build the table for the whole data set, for example LogMovingAverage({high + 1}), and number "
            "samples by their place in the data set (dro_temp.datasets.Indexed does)."
        )
    return index


def check_number(name: str, value: Any, example: float) -> None:
    """Raise unless `value` is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"expected {name} as a number, received {type(value).__name__} ({value!r}). Pass {name}={example}, say."
        )
    if not math.isfinite(value):
        raise ValueError(f"expected a finite {name}, received {name}={value}. Pass {name}={example}, say.")


def check_shape(name: str, x: Tensor, shape: torch.Size, instead: str) -> None:
    """Raise unless `x` has this shape."""
    if x.shape != shape:
        raise ValueError(f"expected {name} of shape {list(shape)}, received shape {list(x.shape)}. {instead}")
