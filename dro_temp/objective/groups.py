"""Parameter groups of an objective's parts."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def trained(*modules: nn.Module, without: Sequence[nn.Parameter] = ()) -> list[nn.Parameter]:
    """Parameters that train, each once, and none of those that are in another group."""
    taken = {id(p) for p in without}
    unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return [p for key, p in unique.items() if key not in taken]


def parameter_groups(*groups: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups that hold something.

    Raises:
        ValueError: none does.
    """
    found = [group for group in groups if group["params"]]
    if not found:
        raise ValueError(
            "expected something to train, received a frozen host and predictors without parameters. "
            "Use a TempNet or LearnableTemperature, or frozen=False. A table of individual temperatures with "
            "an update of its own needs no optimizer: call objective.commit() after backward."
        )
    return found
