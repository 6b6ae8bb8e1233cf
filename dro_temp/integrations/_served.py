"""Which network an engine serves, and what a request may ask of it; imports no engine."""

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from dro_temp.predictors import TempNet

#: The environment variable with the folder, or the Hub's name, of the TempNet to serve.
VARIABLE = "DRO_TEMP_TEMPNET"
SWITCH, LOWER, UPPER = KEYS = ("dro_temp", "dro_temp_tau_min", "dro_temp_tau_max")


class RequestBounds(NamedTuple):
    """Bounds of a request's temperatures; a request without temperatures has both at 1."""

    tau_min: float
    tau_max: float


@functools.cache
def _loaded(source: str) -> TempNet:
    return TempNet.from_pretrained(source)


def served_tempnet() -> TempNet | None:
    """The network that `DRO_TEMP_TEMPNET` names, loaded once per process; None if the variable is not set.

    Raises:
        FileNotFoundError: no such folder.
        OSError: the Hub has no such repository.
        ValueError: a damaged checkpoint.

    Example:
        >>> import os
        >>> from dro_temp.integrations.vllm import served_tempnet
        >>> os.environ.pop("DRO_TEMP_TEMPNET", None)
        >>> served_tempnet() is None
        True
    """
    source = os.environ.get(VARIABLE)
    return _loaded(source) if source else None


def ours(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of a request that are meant for this library."""
    asked = {k: v for k, v in (arguments or {}).items() if k.startswith(SWITCH)}
    unknown = sorted(set(asked) - set(KEYS))
    if unknown:
        raise ValueError(
            f"expected arguments out of {', '.join(KEYS)}, received {', '.join(unknown)}. Correct the name."
        )
    return asked


def bounds_asked(tempnet: TempNet, arguments: Mapping[str, Any] | None) -> RequestBounds:
    """The bounds that a request asks for, within those of the network.

    Raises:
        ValueError: an unknown name, a value of another type, or bounds outside the network's or in the wrong order.
    """
    asked = ours(arguments)
    switch = asked.get(SWITCH, True)
    if isinstance(switch, float) or switch not in (0, 1):
        raise ValueError(
            f"expected {SWITCH} as True or False, received {switch!r}. Pass {SWITCH}: False, say."
        )
    if not switch:
        if len(asked) > 1:
            raise ValueError(
                f"expected no bounds beside {SWITCH}: False, received {asked}. Leave one of them out."
            )
        return RequestBounds(1.0, 1.0)
    bounds = RequestBounds(
        _number(asked, LOWER, tempnet.tau_min),
        _number(asked, UPPER, tempnet.tau_max),
    )
    if not tempnet.tau_min <= bounds.tau_min <= bounds.tau_max <= tempnet.tau_max:
        raise ValueError(
            f"expected {tempnet.tau_min} <= {LOWER} <= {UPPER} <= {tempnet.tau_max}, within the bounds of the served "
            f"TempNet, received {bounds.tau_min} and {bounds.tau_max}. Narrow them, or multiply all temperatures with "
            "the request's own temperature=..."
        )
    return bounds


def _number(asked: Mapping[str, Any], name: str, default: float) -> float:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected {name} as a number, received {value!r}. Pass {name}: 0.5, say.")
    return float(value)
