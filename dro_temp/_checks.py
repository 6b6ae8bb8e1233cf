"""Checks of arguments. Each message says what was expected, what was received, and what to type instead."""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from dro_temp import _faults


def check_kind(name: str, value: Any, kind: type, instead: str) -> None:
    """Raise unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise TypeError(
            f"expected {name} to be {with_article(kind)}, received {type(value).__name__}. {instead}"
        )


def with_article(kind: type) -> str:
    """The name of a class in a sentence, "an Objective", "a Rows"; that of None's is None."""
    name = kind.__name__
    if kind is type(None):
        return "None"
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def check_class(name: str, value: Any, kind: type, instead: str) -> None:
    """Raise unless `value` is a class derived from `kind`."""
    if not (isinstance(value, type) and issubclass(value, kind)):
        raise TypeError(
            f"expected {name} to be a subclass of {kind.__name__}, received {_short(value)}. {instead}"
        )


def check_flag(name: str, value: Any) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise _wrong_type(f"{name} to be True or False", value, f"Pass {name}=True or {name}=False.")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless `value` is one of some names."""
    names = list(choices)
    if not (isinstance(value, str) and value in names):
        raise ValueError(
            f"expected {name} to be one of {names}, received {_short(value)}. Pass {name}={names[0]!r}, say."
        )


def check_several(name: str, value: Any, instead: str) -> None:
    """Raise unless `value` is an iterable other than a string or a mapping."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise _wrong_type(f"{name} as a sequence", value, instead)


def check_callable(name: str, value: Any) -> None:
    """Raise unless `value` can be called."""
    if not callable(value):
        raise _wrong_type(f"{name} as a function", value, "Pass one that can be called, such as a lambda.")


def _wrong_type(expected: str, value: Any, instead: str) -> TypeError:
    return TypeError(f"expected {expected}, received {type(value).__name__} ({_short(value)}). {instead}")


def _short(value: Any) -> str:
    """The value as one would type it, long ones abbreviated."""
    text = f"of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:40]} ... {text[-10:]}"


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int (NumPy's included), or raise unless it is a whole number >= `minimum`."""
    if torch.compiler.is_compiling():  # a size may be a symbol there, and must not become a number
        symbol: int = value
        return symbol
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if isinstance(value, bool) or count is None:
        raise _wrong_type(f"{name} as an int", value, "Pass a whole number.")
    if count < minimum:
        raise ValueError(f"expected {name} >= {minimum}, received {name}={count}. Pass a larger number.")
    return count


def check_real(name: str, value: Any, instead: str) -> None:
    """Raise unless `value` is a real number: Python's or NumPy's, but not a bool or a tensor."""
    if type(value) is float:  # nearly always, and faster than to ask an abstract class
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong_type(f"{name} as a number", value, instead)


def _check_range(
    name: str, value: float, inside: Callable[[float], bool], expected: str, instead: str
) -> None:
    """Raise unless `value` is a number inside the range."""
    check_real(name, value, instead)
    if not inside(value):
        raise ValueError(f"expected {expected}, received {name}={value}. {instead}")


def check_number(name: str, value: Any, example: float) -> None:
    """Raise unless `value` is a finite real number."""
    _check_range(name, value, math.isfinite, f"a finite {name}", f"Pass {name}={example}, say.")


def check_positive(name: str, value: float) -> None:
    """Raise unless `0 < value < inf`."""
    _check_range(name, value, lambda x: 0.0 < x < math.inf, f"a finite {name} > 0", "Pass a positive number.")


def check_not_negative(name: str, value: float) -> None:
    """Raise unless `0 <= value < inf`."""
    _check_range(name, value, lambda x: 0.0 <= x < math.inf, f"a finite {name} >= 0", "Pass a number >= 0.")


def check_share(name: str, value: float) -> None:
    """Raise unless `0 < value <= 1`."""
    instead = f"Pass {name}=0.2 for a fifth of the samples, say."
    _check_range(name, value, lambda x: 0.0 < x <= 1.0, f"{name} in (0, 1]", instead)


def check_dropout(dropout: float) -> None:
    """Raise unless `0 <= dropout < 1`: at 1 nothing of the input is left."""
    instead = "Pass dropout=0.5, say, or 0.0 for none."
    _check_range("dropout", dropout, lambda x: 0.0 <= x < 1.0, "dropout in [0, 1)", instead)


def check_within(
    name: str, value: float, lower: float, upper: float, *, default: float | None = None
) -> None:
    """Raise unless `lower <= value <= upper`; the message says if the value may be the default."""
    check_real(name, value, f"Pass a number between {lower} and {upper}.")
    if not (lower <= value <= upper):
        origin = ", which is the default" if value == default else ""
        raise ValueError(
            f"expected {name} between {lower} and {upper}, received {name}={value}{origin}. Pass {name}=... in that "
            "range."
        )


def check_inside(name: str, value: float, lower: float, upper: float) -> None:
    """Raise unless `lower < value < upper`."""
    expected = f"{name} between {lower} and {upper}, both excluded"
    instead = f"Pass a number between {lower} and {upper}."
    _check_range(name, value, lambda x: lower < x < upper, expected, instead)


def check_interval(lower: float, upper: float) -> None:
    """Raise unless `lower <= upper`."""
    check_real("lower", lower, "Pass lower=0.01, say.")
    check_real("upper", upper, "Pass upper=1.0, say.")
    if not (lower <= upper):
        raise ValueError(
            f"expected an interval with lower <= upper, received lower={lower}, upper={upper}. Pass them the other way "
            "round."
        )


def check_bounds(tau_min: float, tau_max: float) -> None:
    """Raise unless `0 < tau_min < tau_max < inf`."""
    check_real("tau_min", tau_min, "Pass tau_min=0.01, say.")
    check_real("tau_max", tau_max, "Pass tau_max=1.0, say.")
    if not (0.0 < tau_min < tau_max < math.inf):
        raise ValueError(
            f"expected temperature bounds with 0 < tau_min < tau_max < inf, received tau_min={tau_min}, "
            f"tau_max={tau_max}. Widen or swap them, for example tau_min=0.01, tau_max=1.0; "
            "for one fixed value use ConstantTemperature(tau)."
        )


def check_tilt(tilt: float) -> None:
    """Raise unless `tilt` is finite and not 0."""
    check_number("tilt", tilt, 1.0)
    if tilt == 0:
        raise ValueError(
            "expected a tilt other than 0, received tilt=0, whose risk is the mean. Write MeanRisk()."
        )


def check_radius(rho: float) -> None:
    """Raise unless `0 <= rho < inf`."""
    instead = "Pass rho=1.0, say: useful values lie between 0 and log(number of outcomes)."
    _check_range("rho", rho, lambda x: 0.0 <= x < math.inf, "a finite radius rho >= 0", instead)


def check_feasible(rho: float, support_size: int, *, instead: str | None = None) -> None:
    """Raise where the KL ball of radius `rho` holds every distribution over the support.

    `KL(p||U) <= log m` for every p, so from `rho = log m` on, dF/dtau = rho - KL is never negative and
    every temperature collapses to tau_min. `instead` replaces the advice to use a larger batch or an estimator.
    """
    # In a graph, a bound on the size is one guard for all sizes above it; its logarithm would be a graph for each.
    if torch.compiler.is_compiling():
        holds_everything = support_size <= math.exp(min(rho, 700.0))
    else:
        holds_everything = rho >= math.log(max(support_size, 1))
    if rho > 0.0 and holds_everything:
        instead = instead or (
            "Lower rho, or raise m: a larger batch (drop_last=True if this is a short last batch), or a "
            "LogMovingAverage estimator, which makes m the size of the data set."
        )
        raise ValueError(
            f"expected rho < log m, received rho={rho} with m={support_size} outcomes in the support "
            f"(log m = {math.log(max(support_size, 1)):.4g}): the KL ball holds every distribution and the "
            f"temperature collapses to tau_min. {instead}"
        )


def check_feasible_for(rho: float, num_samples: int) -> None:
    """As `check_feasible`, for rows of which each has all other samples of a data set as its outcomes."""
    others = num_samples - 1
    needed = f"; rho={rho} needs a data set of {math.floor(math.exp(rho)) + 2} samples or more"
    enough = needed if rho < 30.0 else ""  # beyond, the number is no help
    instead = f"Lower rho below log(num_samples - 1) = {math.log(max(others, 1)):.4g}{enough}."
    check_feasible(rho, others, instead=instead)


def check_index(index: Tensor, num_samples: int) -> Tensor:
    """Return `index` as int64, or raise where it is not a sample number in [0, num_samples).

    On a device the error is raised later (`_faults`), and such a number becomes -1, which no sample has.
    """
    if not isinstance(index, Tensor) or index.dtype not in _INTEGERS:
        check_integers("index", index)
    index = index.long()
    if torch.compiler.is_compiling() or index.numel() == 0 or index.is_meta:
        return index
    # Reading values waits for the device, and stops a graph that is being captured or compiled.
    if index.is_cuda or _faults.everywhere:
        wrong = (index < 0) | (index >= num_samples)
        check_extremes(torch.stack(index.aminmax()), num_samples)
        return index.masked_fill(wrong, -1)
    if index.is_cpu and not values_can_be_read(index):
        return index
    low, high = torch.stack(index.aminmax()).tolist()
    if low < 0 or high >= num_samples:
        raise _outside(low, high, num_samples)
    return index


def check_extremes(extremes: Tensor, num_samples: int) -> None:
    """Raise later (`_faults`) if the least and the greatest of some sample numbers are outside [0, num_samples).

    Args:
        extremes: both, or those of several parts, [p 2].
        num_samples: size of the data set.
    """

    def error(numbers: list[int]) -> IndexError | None:
        low, high = min(numbers), max(numbers)
        return _outside(low, high, num_samples) if low < 0 or high >= num_samples else None

    _faults.check(extremes.flatten(), error)


def _outside(low: int, high: int, num_samples: int) -> IndexError:
    return IndexError(
        f"expected sample numbers from 0 to {num_samples - 1}, received numbers from {low} to {high}. "
        f"Build the table for the whole data set, for example LogMovingAverage({high + 1}), or, if the data set "
        "has grown, call objective.resize(number of samples); and number samples by their place in the data set "
        "(dro_temp.datasets.Indexed does)."
    )


def check_tensor(name: str, value: Any) -> None:
    """Raise unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise _wrong_type(f"{name} as a tensor", value, f"Pass torch.as_tensor({name}).")


def check_integers(name: str, value: Any) -> None:
    """Raise unless `value` is a tensor of integers."""
    if isinstance(value, Tensor) and value.dtype in _INTEGERS:
        return
    check_tensor(name, value)
    if not holds_integers(value):
        raise TypeError(f"expected {name} of an integer dtype, received {value.dtype}. Pass {name}.long().")


def check_floats(name: str, value: Any) -> None:
    """Raise unless `value` is a tensor of floating-point numbers."""
    if not isinstance(value, Tensor):
        check_tensor(name, value)
    if not value.is_floating_point():
        raise TypeError(
            f"expected {name} of a floating-point dtype, received {value.dtype}. Pass {name}.float()."
        )


def check_matrix(name: str, x: Any) -> None:
    """Raise unless `x` is a matrix of floating-point numbers, [n, m]."""
    check_floats(name, x)
    if x.dim() != 2:
        raise ValueError(
            f"expected {name} of shape [n, m], received {list(x.shape)}. Flatten leading dimensions first, for example "
            f"{name}.flatten(0, -2)."
        )


def check_shape(name: str, x: Tensor, shape: torch.Size, instead: str) -> None:
    """Raise unless `x` has this shape."""
    if x.shape != shape:
        raise ValueError(f"expected {name} of shape {list(shape)}, received shape {list(x.shape)}. {instead}")


def values_can_be_read(*tensors: Tensor | None) -> bool:
    """Whether a check may read the values of these tensors without waiting for a device or breaking a graph.

    False on a device, inside `torch.compile`, a trace or a transform of `torch.func`, and for subclasses such as fake
    tensors.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    return all(x is None or (type(x) in _PLAIN and x.is_cpu) for x in tensors)


def extremes(x: Tensor) -> tuple[float, float]:
    """Least and greatest value, both NaN if one is NaN; (1, 1) of nothing. Two reads, and no third tensor."""
    if x.numel() == 0:
        return 1.0, 1.0
    low, high = x.detach().aminmax()
    return low.item(), high.item()


def first_wrong(wrong: Tensor, values: Tensor) -> tuple[int, Any]:
    """Index and value of the first wrong row; there must be one."""
    row = int(wrong.nonzero()[0])
    return row, values[row].item()


def holds_integers(x: Tensor) -> bool:
    """Whether the dtype is an integer type; bool is not."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


_PLAIN = (Tensor, torch.nn.Parameter)
_INTEGERS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))
