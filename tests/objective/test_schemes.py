"""Recipes by name and their options, as commands offer them."""

import pytest
import torch
from torch import nn

import dro_temp as dt
from dro_temp._schemes import FACTS, make_objective, options_of, schemes

KNOWN = {"num_samples": 100, "width": 4, "epochs": 4, "steps_per_epoch": 5, "steps": 20}


def _host() -> dt.hosts.TwoTower:
    return dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))


@pytest.mark.parametrize("scheme", schemes())
def test_every_scheme_is_made_from_facts_and_its_options(scheme):
    options = dict.fromkeys(options_of())
    mine = {o.name: o.defaults[scheme] for o in options_of().values() if scheme in o.defaults}
    if "rho" in mine:
        mine["rho"] = 1.0  # the defaults are for data sets of thousands
    objective = make_objective(scheme, _host(), KNOWN, options | mine)
    objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()


def test_facts_are_those_of_the_run_and_every_option_is_described():
    assert set(KNOWN) == set(FACTS)
    for option in options_of().values():
        assert option.help, f"no docstring of a recipe describes {option.name} under Args"
        assert option.defaults
        assert option.name not in FACTS


def test_recipes_that_need_more_are_not_offered():
    assert set(dt.recipes.__all__) - set(schemes()) == {"drrho", "supcon"}
    assert "tempnet" not in schemes(["num_samples"])
    assert "infonce" in schemes([])


def test_values_reach_the_parts():
    chosen = {"tau_min": 0.02, "tau_max": 0.3, "rho": 0.5, "gamma": 0.4}
    objective = make_objective("tempnet", _host(), KNOWN, chosen)
    assert objective.predictors["image"].tau_max == 0.3
    assert objective.losses["text"].estimator.gamma == 0.4
    assert len(objective.losses["text"].estimator.log_u) == 100


@pytest.mark.parametrize(
    ("scheme", "options", "words"),
    [
        ("temp", {}, r"expected --scheme to be one of .* received 'temp'"),
        ("infonce", {"rho": 1.0}, r"expected options of --scheme infonce \(--tau-init\), received --rho. .*isogclr"),
        ("sogclr", {"tau_max": 1.0}, r"received --tau-max. Leave it out, or choose a scheme that has it: .*tempnet"),
        ("sogclr", {"colour": 1.0}, r"received --colour. Leave it out\."),
        ("tempnet", {"rho": 9.0}, "rho"),
    ],
)  # fmt: skip
def test_errors_say_what_to_type(scheme, options, words):
    with pytest.raises(ValueError, match=words):
        make_objective(scheme, _host(), KNOWN, options)


def test_another_command_spells_options_its_own_way():
    with pytest.raises(ValueError, match=r"--tau_init.*received --tau_max"):
        make_objective("infonce", _host(), KNOWN, {"tau_max": 1.0}, spelled=lambda name: f"--{name}")
