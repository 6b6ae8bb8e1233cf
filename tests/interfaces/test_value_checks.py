"""Checks that look at values: where they look, where they may not, and once."""

import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import dro_temp as dt
from dro_temp._checks import values_can_be_read

WRONG = torch.tensor([1.0, -1.0, 1.0])


def test_values_are_read_in_host_memory_alone():
    assert values_can_be_read(WRONG, nn.Parameter(WRONG), None)
    assert not values_can_be_read(WRONG.to("meta"))
    with FakeTensorMode() as mode:
        assert not values_can_be_read(mode.from_tensor(WRONG))
        assert not values_can_be_read(WRONG)  # an operation on it would be a fake one


@pytest.mark.filterwarnings("ignore:.*jit.trace")
def test_values_are_not_read_inside_transforms_and_traces():
    seen = []

    def function(x):
        seen.append(values_can_be_read(x) or values_can_be_read(WRONG))
        return x * 2

    torch.func.vmap(function)(WRONG)
    torch.func.grad(lambda x: function(x).sum())(WRONG)
    torch.jit.trace(function, WRONG, check_trace=False)
    assert seen == [False] * 3


def test_rows_on_a_device_check_shapes_and_read_nothing():
    weight, target = WRONG.to("meta"), torch.full((3,), 9, device="meta")
    rows = dt.Rows(torch.zeros(3, 5, device="meta"), target, weight=weight)
    rows.check_values()  # reading a value of the meta device would raise
    with pytest.raises(ValueError, match=r"expected weight of shape \[3\]"):
        dt.Rows(rows.scores, target, weight=weight[:2])
    with pytest.raises(ValueError, match=r"expected target on meta.*received it on cpu"):
        dt.Rows(rows.scores, target=torch.zeros(3, dtype=torch.long))


@pytest.mark.filterwarnings("ignore")
def test_a_loss_with_checks_is_one_graph(no_shape_checks):
    rows = dt.Rows(torch.randn(3, 5), torch.arange(3), weight=torch.ones(3))
    loss = dt.KLRobustLoss(0.5)

    def function(tau):
        return loss(rows, tau)

    tau = torch.tensor([0.5, 1.0, 2.0])
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tau), function(tau), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("weight", "tau"),
    [
        (torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, bad, 1.0]))
        for bad in (0.0, -1.0, math.nan, math.inf)
    ],
)
def test_a_row_that_does_not_count_may_have_any_temperature_and_target(weight, tau):
    scores = torch.randn(3, 5)
    rows = dt.Rows(scores, torch.tensor([0, 99, 2]), weight=weight)
    plain = dt.Rows(scores, torch.tensor([0, 1, 2]), weight=weight)
    for backend in ("auto", "reference"):
        loss = dt.KLRobustLoss(0.5, backend=backend)
        torch.testing.assert_close(loss(rows, tau), loss(plain, 1.0), rtol=0, atol=0)


class _Given(dt.HostAdapter):
    """Rows as they are given: a custom host."""

    views = ("given",)

    def rows(self, rows):
        return {"given": rows}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": WRONG}, r"weights that are finite and >= 0, received -1.0 in row 1"),
        ({"target": torch.tensor([0, 1, 5])}, r"targets from 0 to 4.*received 5 in row 2"),
        ({"target_distribution": torch.full((3, 5), 0.3)}, r"probabilities.*number 0.*sum 1.5"),
    ],
)
def test_an_objective_looks_at_the_rows_of_a_host_that_does_not(change, said):
    rows = dt.Rows(**({"scores": torch.randn(3, 5), "target": torch.arange(3)} | change))
    objective = dt.Objective(_Given(), dt.LearnableTemperature(0.5), dt.KLRobustLoss(0.5))
    with pytest.raises(ValueError, match=f"(?s){said}"):
        objective(rows)


def test_what_a_host_says_of_its_rows_is_not_inherited_by_others():
    class Mine(dt.hosts.Classifier):
        def rows(self, *args, **batch):
            return super().rows(*args, **batch)

    class Same(dt.hosts.Classifier):
        pass

    assert (dt.hosts.Classifier.checks_values, Same.checks_values, Mine.checks_values) == (True, True, False)


def test_temperatures_that_overflowed_pass_to_the_gradient_scaler_also_with_a_tau_loss():
    host = dt.hosts.Classifier(nn.Linear(3, 4))
    predictor = dt.LearnableTemperature(0.5)
    with torch.no_grad():
        predictor.log_tau.fill_(math.nan)
    objective = dt.Objective(
        host, predictor, dt.KLRobustLoss(0.5), tau_loss=dt.LikelihoodLoss(), check_finite=False, monitor=False
    )
    assert bool(objective(torch.randn(2, 3), torch.tensor([0, 1])).loss.isnan())


def test_checks_of_an_argument_take_numbers_of_numpy_and_python(no_shape_checks):
    numpy = pytest.importorskip("numpy")
    assert dt.KLRobustLoss(numpy.float32(0.5)).rho == 0.5
    assert dt.LogMovingAverage(numpy.int64(3)).num_samples == 3
    assert dt.ConstantTemperature(1).tau_min == 1.0
    rows = dt.Rows(torch.randn(3, 5), torch.arange(3))
    loss = dt.KLRobustLoss(0.5)
    torch.testing.assert_close(loss(rows, numpy.float64(2.0)), loss(rows, 2))
