"""Recipes by name, for commands: which there are, what options each takes, and an objective made from options.

A recipe's own signature and docstring are the only table: a new recipe is an option of every command at once.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dro_temp import recipes
from dro_temp._checks import check_choice
from dro_temp.interfaces import HostAdapter
from dro_temp.objective import Objective

__all__ = ["FACTS", "Option", "Recipe", "chosen_options", "make_objective", "options_of", "schemes"]

Recipe = Callable[..., Objective]

#: Arguments of recipes that a command reads from its data, its model and the length of its training.
FACTS = ("num_samples", "width", "epochs", "steps_per_epoch", "steps")


@dataclass(frozen=True)
class Option:
    """An argument of recipes that the user may choose.

    Args:
        name: as in the recipes' signatures, such as "tau_min".
        type: float or int.
        help: what a docstring says of it.
        defaults: its default in each scheme that takes it.
    """

    name: str
    type: Callable[[str], float]
    help: str
    defaults: dict[str, float | None]


def schemes(facts: Iterable[str] = FACTS) -> dict[str, Recipe]:
    """The recipes over one host that need nothing but these facts, by name.

    `supcon` is not among them: it needs the groups of a batch's pairs, without which it is `simclr`.

    Example:
        >>> "tempnet" in schemes(), "tempnet" in schemes(["num_samples"]), "drrho" in schemes()
        (True, False, False)
    """
    known = set(facts)
    every = {name: getattr(recipes, name) for name in recipes.__all__}
    return {name: recipe for name, recipe in every.items() if name != "supcon" and _required(recipe) <= known}


def options_of(of: Mapping[str, Recipe] | None = None) -> dict[str, Option]:
    """The options of some schemes, by default of all that commands offer, each once and by name.

    Example:
        >>> options_of()["tau_min"].defaults["tempnet"], options_of()["queue"].type
        (0.005, <class 'int'>)
    """
    of = schemes() if of is None else of
    found: dict[str, Option] = {}
    for scheme, recipe in of.items():
        for name, parameter in _arguments(recipe).items():
            if name in FACTS:
                continue
            kind: Any = int if parameter.annotation is int else float
            option = found.setdefault(name, Option(name, kind, _said(name, of.values()), {}))
            option.defaults[scheme] = parameter.default
    return found


def make_objective(
    scheme: str,
    host: HostAdapter,
    facts: Mapping[str, Any],
    options: Mapping[str, float | None],
    spelled: Callable[[str], str] = lambda name: f"--{name.replace('_', '-')}",
) -> Objective:
    """An objective over a host.

    Args:
        scheme: name of a recipe.
        host: what the recipe is for.
        facts: what the command knows, by the names of `FACTS`; those that the recipe does not take are left out.
        options: values by name; None where the user chose none.
        spelled: how an option is typed, for errors.

    Raises:
        ValueError: an unknown scheme, an option that the scheme does not have, and whatever its parts refuse.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> make_objective("sogclr", host, {"num_samples": 100, "width": 4}, {"tau": 0.1, "rho": None}).losses["image"]
        KLRobustLoss(
          rho=0.0
          (estimator): LogMovingAverage(100)
        )
    """
    chosen = chosen_options(scheme, facts, options, spelled)
    recipe = schemes(facts)[scheme]
    given = {name: value for name, value in facts.items() if name in _arguments(recipe)}
    return recipe(host, **given, **chosen)


def chosen_options(
    scheme: str,
    facts: Iterable[str],
    options: Mapping[str, float | None],
    spelled: Callable[[str], str] = lambda name: f"--{name.replace('_', '-')}",
) -> dict[str, float]:
    """The options that the user chose, checked to be those of the scheme: possible before there is a host.

    Arguments are those of `make_objective`, of whose facts the names are enough.

    Raises:
        ValueError: an unknown scheme, or an option that it does not have.

    Example:
        >>> chosen_options("sogclr", FACTS, {"tau": 0.1, "rho": None})
        {'tau': 0.1}
    """
    facts = set(facts)
    known = schemes(facts)
    check_choice(spelled("scheme"), scheme, known)
    arguments = _arguments(known[scheme])
    chosen = {name: value for name, value in options.items() if value is not None}
    for name in chosen:
        if name not in arguments or name in facts:
            takes = ", ".join(spelled(n) for n in arguments if n not in facts)
            others = [other for other, recipe in known.items() if name in _arguments(recipe)]
            instead = f", or choose a scheme that has it: {', '.join(others)}" if others else ""
            raise ValueError(
                f"expected options of {spelled('scheme')} {scheme} ({takes}), received {spelled(name)}. Leave it "
                f"out{instead}."
            )
    return chosen


def _arguments(recipe: Recipe) -> dict[str, inspect.Parameter]:
    """What a recipe takes after its host."""
    _, *rest = inspect.signature(recipe).parameters.values()
    return {parameter.name: parameter for parameter in rest}


def _required(recipe: Recipe) -> set[str]:
    return {name for name, parameter in _arguments(recipe).items() if parameter.default is parameter.empty}


def _said(name: str, of: Iterable[Recipe]) -> str:
    """What a docstring says of an argument: that of the recipe with most arguments, which is the most general."""
    line = re.compile(rf"^ {{8}}{name}: (?!as of )(.*(?:\n {{12}}.*)*)", re.MULTILINE)
    by_size = sorted(of, key=lambda recipe: len(_arguments(recipe)), reverse=True)
    found = filter(None, (line.search(recipe.__doc__ or "") for recipe in by_size))
    return " ".join(next((match[1] for match in found), "").split())
