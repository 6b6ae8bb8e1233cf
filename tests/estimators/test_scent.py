"""SCENT's estimator: two ways to write one rule."""

import math

import pytest
import strategies
import torch
from hypothesis import given
from hypothesis import strategies as st

import dro_temp as dt
from dro_temp import functional as F

logs = st.floats(-40, 40)


@given(logs, logs, st.floats(-20, 20))
def test_mirror_descent_is_an_average_with_a_gamma_of_its_own(log_u, log_g, alpha):
    """gamma = sigmoid(alpha + nu), and y' = (y + e^a) / (1 + e^a g): both in float64, without logarithms."""
    gamma = 1 / (1 + math.exp(-(alpha + log_u)))
    rest = 1 / (1 + math.exp(alpha + log_u))
    averaged = math.log(rest * math.exp(log_u) + gamma * math.exp(log_g))
    stepped = -math.log((math.exp(-log_u) + math.exp(alpha)) / (1 + math.exp(alpha) * math.exp(log_g)))
    ours = F.log_mirror_average(
        torch.tensor([log_u], dtype=torch.float64), torch.tensor([log_g], dtype=torch.float64), alpha
    ).item()
    assert ours == pytest.approx(averaged, rel=1e-9, abs=1e-9)
    assert ours == pytest.approx(stepped, rel=1e-9, abs=1e-9)


@given(strategies.seeds, st.floats(-20, 20))
def test_the_first_visit_gives_log_g(seed, alpha):
    log_g = 50 * torch.randn(6, generator=torch.Generator().manual_seed(seed))
    estimator = dt.Scent(6, alpha=alpha)
    estimator.propose(torch.arange(6), log_g, torch.ones(6, dtype=torch.bool))
    estimator.commit()
    assert torch.equal(estimator.log_u, log_g)


def test_far_away_nothing_overflows():
    log_u, log_g = torch.tensor([-5000.0, 5000.0, 0.0]), torch.tensor([5000.0, -5000.0, 0.0])
    moved = F.log_mirror_average(log_u, log_g, 10.0)
    torch.testing.assert_close(moved, torch.tensor([10.0, -10.0, 0.0]), rtol=1e-4, atol=1e-3)


def test_its_weight_is_bounded_by_one_over_its_gamma():
    log_u = torch.linspace(-15, 15, 31, dtype=torch.float64)
    log_g = torch.full_like(log_u, 20.0).requires_grad_()
    new = F.log_mirror_average(log_u, log_g.detach(), 2.0)
    F.compositional_log_mean(log_g, new).sum().backward()
    assert bool((log_g.grad <= (1 + (-2.0 - log_u).exp()) * (1 + 1e-12)).all())


def test_a_large_alpha_forgets_and_a_small_one_stays():
    one, held = torch.tensor([3.0]), torch.tensor([0.5])
    torch.testing.assert_close(F.log_mirror_average(held, one, 40.0), one)
    torch.testing.assert_close(F.log_mirror_average(held, one, -40.0), held)


def test_its_state_is_one_table():
    assert list(dt.Scent(4).state_dict()) == ["log_u"]
    assert list(dt.LogMovingAverage(4).state_dict()) == ["log_u", "steps"]


@pytest.mark.parametrize(
    ("alpha", "error", "text"),
    [
        ("10", TypeError, r"expected alpha as a number, received str \('10'\)\. Pass alpha=10.0"),
        (True, TypeError, r"expected alpha as a number, received bool"),
        (math.inf, ValueError, r"expected a finite alpha, received alpha=inf\..*LogMovingAverage"),
        (math.nan, ValueError, r"expected a finite alpha, received alpha=nan"),
    ],
)
def test_alpha_is_a_finite_number(alpha, error, text, no_shape_checks):
    with pytest.raises(error, match=text):
        dt.Scent(4, alpha=alpha)


def test_sample_numbers_are_asked_for_by_its_own_name():
    loss = dt.EntropicRiskLoss(estimator=dt.Scent(4))
    rows = dt.Rows(torch.randn(3, 3), torch.arange(3), target_in_support=False)
    with pytest.raises(ValueError, match="sample numbers of the rows for Scent, received index=None"):
        loss(rows, 1.0)
    with pytest.raises(IndexError, match="from 0 to 3, received numbers from 0 to 4"):
        dt.EntropicRiskLoss(estimator=dt.Scent(4))(
            dt.Rows(torch.randn(3, 3), torch.arange(3), index=torch.tensor([0, 2, 4])), 1.0
        )
