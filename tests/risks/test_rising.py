"""A radius that rises with the steps that were taken."""

import copy
import pickle

import pytest
import torch

import dro_temp as dt
from dro_temp.risks import RisingRadius

LOSSES = torch.tensor([0.1, 0.2, 0.3, 9.0])


def stepped(risk, times, forwards=1):
    for _ in range(times):
        for _ in range(forwards):
            risk(LOSSES.clone().requires_grad_()).backward()
        risk.commit()
    return risk


@pytest.mark.parametrize(("taken", "expected"), [(0, 0.1), (1, 0.3), (2, 0.5), (7, 0.5)])
def test_the_radius_rises_linearly_and_stays(taken, expected):
    rising = stepped(RisingRadius(dt.KLRisk(0.0), 0.5, steps=2, start=0.1), taken)
    assert rising.rho == pytest.approx(expected)
    assert rising(LOSSES) == dt.KLRisk(rising.rho)(LOSSES)


def test_a_radius_may_fall():
    assert stepped(RisingRadius(dt.ChiSquareRisk(0.0), 0.0, steps=4, start=0.8), 3).rho == pytest.approx(0.2)


def test_parts_of_a_window_are_one_step():
    assert stepped(RisingRadius(dt.KLRisk(0.0), 0.5, steps=10), 2, forwards=3).rho == pytest.approx(0.1)


def test_what_is_no_step_does_not_count():
    risk = dt.OptimisticRisk(RisingRadius(dt.KLRisk(0.0), 0.5, steps=10))
    risk(LOSSES.clone().requires_grad_()).backward()
    risk.discard()  # a scaler skipped the step
    risk.eval()(LOSSES)
    risk.train().weights(LOSSES)
    with torch.no_grad():
        risk(LOSSES)
    risk.commit()
    assert risk.risk.rho == 0.0


def test_it_resumes_where_it_was():
    make = lambda: dt.OptimisticRisk(RisingRadius(dt.KLRisk(0.0), 0.6, steps=3))  # noqa: E731
    first = stepped(make(), 2)
    second = make()
    second.load_state_dict(first.state_dict())
    assert second.risk.rho == first.risk.rho == pytest.approx(0.4)
    assert second(LOSSES) == first(LOSSES)
    assert stepped(second, 1)(LOSSES) == stepped(first, 1)(LOSSES)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_its_own_way(duplicate):
    risk = stepped(RisingRadius(dt.KLRisk(0.0), 0.6, steps=3), 1)
    other = stepped(duplicate(risk), 1)
    assert (risk.rho, other.rho) == (pytest.approx(0.2), pytest.approx(0.4))
    assert risk.risk.rho == pytest.approx(0.2)
    assert other.risk.rho == pytest.approx(0.4)


def test_in_an_objective():
    torch.manual_seed(0)
    host = dt.hosts.Classifier(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3))
    rising = RisingRadius(dt.KLRisk(0.0), 0.4, steps=4)
    objective = dt.Objective(
        host, dt.ConstantTemperature(1.0), dt.LikelihoodLoss(), risk=dt.OptimisticRisk(rising)
    )
    optimizer = dt.CompositionalOptimizer(torch.optim.SGD(objective.param_groups(lr=0.1)), objective)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    radii = []
    for _ in range(5):
        optimizer.zero_grad()
        objective(x, y).loss.backward()
        radii.append(rising.rho)
        optimizer.step()
    assert radii == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((dt.CVaRRisk(0.5), 0.5), {"steps": 3}, TypeError, "a risk with a radius rho, received CVaRRisk"),
        ((torch.nn.Identity(), 0.5), {"steps": 3}, TypeError, "RisingRadius"),
        ((dt.KLRisk(0.0), -0.5), {"steps": 3}, ValueError, "rho"),
        ((dt.KLRisk(0.0), "much"), {"steps": 3}, TypeError, "rho"),
        ((dt.KLRisk(0.0), 0.5), {"steps": 0}, ValueError, "steps"),
        ((dt.KLRisk(0.0), 0.5), {"steps": 2.5}, TypeError, "steps"),
        ((dt.KLRisk(0.0), 0.5), {"steps": 3, "start": torch.inf}, ValueError, "inf"),
    ],
)
def test_bad_arguments(arguments, options, error, words):
    with pytest.raises(error, match=words):
        RisingRadius(*arguments, **options)


def test_a_radius_that_will_be_beyond_the_batches_is_told_at_the_first_step():
    risk = dt.OptimisticRisk(RisingRadius(dt.KLRisk(0.0), 3.0, steps=200))
    with pytest.raises(
        ValueError, match=r"received rho=3\.0 with batches of n=4 samples.*21 samples or more"
    ):
        risk(LOSSES)
    assert risk.eval()(LOSSES) == pytest.approx(LOSSES.mean())


def test_a_short_batch_rests_on_its_least_loss():
    """The ball then holds every distribution: no step of a training is too short, nor an evaluation of one sample."""
    risk = stepped(dt.OptimisticRisk(RisingRadius(dt.KLRisk(0.0), 1.2, steps=2)), 2)
    losses = LOSSES[1:].clone().requires_grad_()
    risk(losses).backward()
    torch.testing.assert_close(losses.grad, torch.tensor([1.0, 0.0, 0.0]))
    assert risk(LOSSES[:1]) == LOSSES[0]
    assert dt.OptimisticRisk(dt.KLRisk(3.0)).eval()(LOSSES) == LOSSES[0]
    assert dt.KLRisk(3.0).eval()(LOSSES) == LOSSES[3]
