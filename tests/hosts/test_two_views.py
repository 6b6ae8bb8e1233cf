"""Two views of one modality: 2B - 2 negatives, neither the row itself nor its partner."""

import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dro_temp as dt

TAU = 0.2


def _slow(x, y, tau):
    """Mean over both views of tau log of the mean over negatives, pair by pair."""
    z = [*x, *y]
    n, total = len(x), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        terms = [
            ((z[i] @ z[j] - z[i] @ z[partner]) / tau).exp() for j in range(2 * n) if j not in (i, partner)
        ]
        total = total + tau * (sum(terms) / len(terms)).log()
    return total / (2 * n)


@given(n=st.integers(2, 7), seed=st.integers(0, 2**16))
def test_value_and_gradient_against_loops(n, seed):
    torch.manual_seed(seed)
    host = dt.hosts.TwoViews(nn.Linear(5, 3)).double()
    objective = dt.Objective(host, dt.ConstantTemperature(TAU), dt.KLRobustLoss(0.0)).double()
    first, second = torch.randn(2, n, 5, dtype=torch.float64)
    loss = objective(first, second).loss
    slow = _slow(*(nn.functional.normalize(host.encoder(v), dim=1) for v in (first, second)), TAU)
    torch.testing.assert_close(loss, slow, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x, list(host.parameters())) for x in (loss, slow))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_memory_is_kept_for_each_view():
    objective = dt.recipes.sogclr(dt.hosts.TwoViews(nn.Linear(5, 3)), small.N, tau=TAU).double()
    small.train(objective, small.optimizer(objective), small.batches(3))
    first, second = (objective.losses[view].estimator.log_u for view in ("first", "second"))
    assert first.isfinite().sum() == second.isfinite().sum() > 6
    assert not torch.equal(first, second)


def test_one_sample_has_no_negatives():
    objective = dt.Objective(
        dt.hosts.TwoViews(nn.Linear(5, 3)), dt.ConstantTemperature(TAU), dt.KLRobustLoss(0.5)
    )
    assert objective(torch.randn(1, 5), torch.randn(1, 5)).loss == 0.0


def test_views_of_unlike_number_are_refused():
    with pytest.raises(ValueError, match="two views of each sample"):
        dt.hosts.TwoViews(nn.Linear(5, 3))(torch.randn(4, 5), torch.randn(3, 5))
