"""Parameter groups of an objective's parts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dro_temp._checks import check_not_negative


def trained(*modules: nn.Module, without: Sequence[nn.Parameter] = ()) -> list[nn.Parameter]:
    """Parameters that require gradient, each once, except those `without`."""
    excluded = {id(p) for p in without}
    unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return [p for key, p in unique.items() if key not in excluded]


def check_rate(name: str, rate: Any) -> None:
    """Raise unless it is a learning rate: a number >= 0, or a tensor, which optimizers accept as well."""
    if not isinstance(rate, Tensor):
        check_not_negative(name, rate)


def host_groups(
    host: nn.Module,
    params: list[nn.Parameter],
    host_params: Iterable[dict[str, Any]] | None,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """The host's parameters as one group, or as the user's groups with the options as defaults."""
    if host_params is None:
        return [{"name": "host", "params": params, **options}]
    groups = list(host_params) if isinstance(host_params, Iterable) else [host_params]
    if not all(isinstance(group, Mapping) and "params" in group for group in groups):
        raise TypeError(
            'expected host as parameter groups, dicts with a list of "params", received '
            f"{type(host_params).__name__}. Pass "
            'host=[{"params": list(objective.host.parameters()), "lr": 1e-4}], or leave it out.'
        )
    groups = [{**options, **group, "name": "host", "params": list(group["params"])} for group in groups]
    members = [id(p) for group in groups for p in group["params"]]
    names = {id(p): name for name, p in host.named_parameters()}
    missing = [names.get(id(p), "?") for p in params if id(p) not in set(members)]
    unknown = len(set(members) - {id(p) for p in params})
    if missing or unknown or len(members) != len(set(members)):
        what = f"none with {missing[0]}" if missing else f"{unknown or 'some twice, and'} others"
        raise ValueError(
            f"expected groups of all of the host's {len(params)} trained parameters, each once, received {what}. Make "
            "them from the model that the host holds: param_groups_layer_decay(objective.host.model, ...)."
        )
    return groups
