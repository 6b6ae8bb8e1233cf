"""Temperatures that are held at the start of training."""

import math

import pytest
import torch
from torch import nn

import dro_temp as dt


def _optimizer() -> torch.optim.Optimizer:
    host = dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))
    objective = dt.recipes.tempnet(host, num_samples=100, width=4, rho=2.0)
    return torch.optim.SGD(objective.param_groups(lr=1.0, tau_lr=2.0))


def _rates(scheduler, optimizer, steps: int) -> list[tuple[float, float]]:
    rates = []
    for _ in range(steps):
        rates.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        scheduler.step()
    return rates


def test_held_then_ramped_then_as_the_schedule_says():
    optimizer = _optimizer()
    scheduler = dt.hold_temperatures(optimizer, steps=10, ramp=4, schedule=lambda step: math.exp(-step / 50))
    for step, (host, tau) in enumerate(_rates(scheduler, optimizer, 20)):
        factor = math.exp(-step / 50)
        assert host == pytest.approx(factor)
        ramp = 0.0 if step < 10 else min(1.0, (step - 9) / 4)
        assert tau == pytest.approx(2.0 * factor * ramp)


def test_temperatures_may_have_a_schedule_of_their_own():
    optimizer = _optimizer()
    scheduler = dt.hold_temperatures(
        optimizer, steps=2, ramp=1, schedule=lambda step: 0.5**step, tau_schedule=lambda step: 3.0
    )
    assert _rates(scheduler, optimizer, 4) == [(1.0, 0.0), (0.5, 0.0), (0.25, 6.0), (0.125, 6.0)]


def test_temperatures_stay_exactly_while_they_are_held():
    host = dt.hosts.TwoTower(nn.Linear(6, 4), nn.Linear(5, 4))
    objective = dt.recipes.tempnet_queued(host, num_samples=30, width=4, rho=1.0, queue=8, tau_init=0.02)
    optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(objective.param_groups(lr=1e-2)), objective)
    scheduler = dt.hold_temperatures(optimizer, steps=4, ramp=1)
    for step in range(8):
        output = objective(torch.randn(6, 6), torch.randn(6, 5), index=torch.randperm(30)[:6])
        held = torch.full((6,), 0.02)
        assert torch.allclose(output.tau["image"], held, atol=1e-8) == (step <= 4)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def test_bad_input_says_what_to_type():
    with pytest.raises(ValueError, match='group named "temperature"'):
        dt.hold_temperatures(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), steps=3)
    with pytest.raises(ValueError, match="steps"):
        dt.hold_temperatures(_optimizer(), steps=0)
