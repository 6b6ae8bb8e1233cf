"""The warning where temperatures that are meant to differ do not."""

import warnings

import pytest
import torch
from torch import nn

import dro_temp as dt
from dro_temp.objective.monitor import EVERY, PATIENCE

ENOUGH = EVERY * (PATIENCE + 1)


def _train(predictor, steps: int = ENOUGH, *, tau_lr: float = 1e-6, **changes) -> dt.Objective:
    torch.manual_seed(0)
    host = dt.hosts.Classifier(nn.Identity(), nn.Linear(4, 10), frozen=True)
    objective = dt.Objective(host, predictor, dt.KLRobustLoss(1.0), **changes)
    optimizer = torch.optim.SGD(objective.param_groups(lr=0.0, tau_lr=tau_lr))
    x = 4 * torch.randn(8, 4)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(x, torch.zeros(8, dtype=torch.long)).loss.backward()
        optimizer.step()
    return objective


def _net(**changes) -> dt.TempNet:
    torch.manual_seed(0)
    options = {"tau_min": 0.1, "tau_max": 4.0, "readout": dt.predictors.ResidualReadout} | changes
    return dt.TempNet(dt.predictors.HiddenEncoder(4, width=8), **options)


def test_one_temperature_for_all_rows_is_said_once():
    with pytest.warns(
        dt.TemperatureWarning, match=r"differ from row to row in view 'class'.*TempNet"
    ) as said:
        _train(_net(), 2 * ENOUGH, tau_lr=1e-4)
    assert len(said) == 1


@pytest.mark.parametrize(("start", "bound"), [(0.1001, "tau_min = 0.1"), (3.999, "tau_max = 4")])
def test_a_bound_is_said(start, bound):
    with pytest.warns(dt.TemperatureWarning, match=f"at the bound {bound}"):
        _train(_net(tau_init=start))


@pytest.mark.slow
def test_nothing_is_said_of_temperatures_that_differ_or_are_meant_not_to():
    with warnings.catch_warnings():
        warnings.simplefilter("error", dt.TemperatureWarning)
        spread = _net()
        nn.init.normal_(spread.readout.last.weight)
        _train(spread, tau_lr=1e-4)
        _train(dt.LearnableTemperature(1.0, tau_min=0.1, tau_max=4.0))
        _train(_net(), ENOUGH - 2 * EVERY, tau_lr=1e-4)  # not yet
        _train(_net(), 2 * ENOUGH, tau_lr=0.0)  # held
        _train(_net(), 2 * ENOUGH, tau_lr=1e-4, monitor=False)


def test_evaluation_is_not_watched():
    objective = _train(_net(), 1)
    objective.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", dt.TemperatureWarning)
        for _ in range(2 * ENOUGH):
            objective(torch.randn(4, 4), torch.zeros(4, dtype=torch.long))
