"""Schemes by name: the recipes for pairs, whose arguments are options where the command has them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dro_temp._schemes import FACTS, chosen_options, make_objective, options_of, schemes
from dro_temp.cli.clip.data import GLYPHS
from dro_temp.hosts import InChunks
from dro_temp.interfaces import HostAdapter
from dro_temp.objective import Objective

# What the command knows besides: a second model.
_FACTS = (*FACTS, "reference")
SCHEMES = schemes(_FACTS)

if TYPE_CHECKING:
    Scheme: TypeAlias = str
else:
    Scheme = Literal[tuple(SCHEMES)]

#: Arguments of recipes that are options of their own; the others are given in --scheme_options.
OPTIONS = ("rho", "tau", "tau_init", "tau_min", "tau_max", "gamma")
# Names of glyphs are fewer, and more alike, than the captions that the recipes' defaults are for.
_GLYPHS = {"rho": 2.5, "tau_init": 0.1, "tau_min": 0.01, "tau_max": 0.2}
_HOLD = 0.3  # share of the steps; where a network learns from a queue, see recipes.tempnet_queued


def arguments(options: Mapping[str, Any]) -> dict[str, float]:
    """The arguments of a recipe among the options of `clip fit`; raises for one that it does not take."""
    scheme, given = options["scheme"], {name: options[name] for name in OPTIONS}
    further = dict(options["scheme_options"] or {})
    if twice := [name for name in further if given.get(name) is not None]:
        raise ValueError(
            f"expected each option once, received {twice[0]} as --{twice[0]} and in --scheme_options. Leave one out."
        )
    chosen = chosen_options(scheme, _FACTS, given | further, _spelled)
    usual = _GLYPHS if options["data"] == GLYPHS else {}
    return {name: value for name, value in usual.items() if takes(scheme, name)} | chosen


def _spelled(name: str) -> str:
    return f"--{name}" if name in (*OPTIONS, "scheme") else f"--scheme_options '{{{name}: ...}}'"


def takes(scheme: str, name: str) -> bool:
    """Whether a recipe has an option of this name."""
    return scheme in options_of(SCHEMES)[name].defaults


def needs_reference(scheme: str) -> bool:
    """Whether a recipe compares with a second model."""
    return scheme not in schemes(FACTS)


def build(
    options: Mapping[str, Any],
    host: HostAdapter,
    *,
    reference: HostAdapter | None,
    chunk: int | None,
    width: int,
    num_samples: int,
    epochs: int,
    steps_per_epoch: int,
) -> Objective:
    """The objective of a run's options over a host.

    Args:
        options: of `clip fit`.
        host: of pairs.
        reference: the frozen host that a scheme with a reference compares with.
        chunk: samples that are encoded at once (gradient caching); None for all of a batch.
        width: of the host's features.
        num_samples: sample numbers are below this.
        epochs: length of the training.
        steps_per_epoch: of the data.
    """
    if chunk is not None:
        host, reference = InChunks(host, chunk), None if reference is None else InChunks(reference, chunk)
    facts: dict[str, Any] = {
        "num_samples": num_samples,
        "width": width,
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "steps": epochs * steps_per_epoch,
        "reference": reference,
    }
    return make_objective(options["scheme"], host, facts, arguments(options), _spelled)


def default_hold(scheme: str) -> float:
    """Share of the steps in which temperatures stay where they start, if it is not given."""
    return _HOLD if takes(scheme, "queue") else 0.0
