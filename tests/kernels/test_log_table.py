"""The kernels of a moving average, interpreted, against plain PyTorch."""

import math

import pytest
import torch

import dro_temp as dt
from dro_temp import _faults
from dro_temp import functional as F
from dro_temp.estimators import moving_average
from dro_temp.functional.kl import LARGEST_RATIO

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture
def on_device(monkeypatch):
    monkeypatch.setattr(_faults, "everywhere", True)
    monkeypatch.setattr(_faults, "pending", _faults._Pending())


def batch(n, size, *, seed=0):
    torch.manual_seed(seed)
    return torch.randint(size, (n,)), 8 * torch.randn(n), torch.rand(n) > 0.2


def trained(estimator, steps):
    """Proposals of a few steps, the table and the number of steps after them."""
    proposals = []
    for index, log_g, valid in steps:
        proposal = estimator.propose(index, log_g, valid)
        proposals.append(proposal.masked_fill(~valid | ~log_g.isfinite(), 0.0))
        estimator.commit()
    return torch.cat(proposals), estimator.log_u.clone(), estimator.steps.clone()


@pytest.mark.parametrize("gamma", [0.8, 1.0, dt.estimators.CosineGamma(0.2, epochs=2)])
@pytest.mark.parametrize("n", [1, 33, 300])
def test_they_agree_with_plain_pytorch(n, gamma, on_device, monkeypatch):
    steps = [batch(n, n // 2 + 1, seed=seed) for seed in range(3)]
    steps[1][1][:1] = torch.inf
    steps[2][1][:1] = torch.nan

    def make():
        return dt.LogMovingAverage(n // 2 + 1, gamma=gamma)

    ours = trained(make(), steps)
    monkeypatch.setattr(moving_average, "MOST_COMPARED", 0)
    plain = trained(make(), steps)
    exact = trained(make(), [(index, log_g.double(), valid) for index, log_g, valid in steps])
    for x, y, z in zip(ours, plain, exact, strict=True):
        assert torch.equal(x.isfinite(), y.isfinite())
        finite = x.isfinite()
        budget = 2 * (y - z)[finite].abs().max() + 1e-6
        assert ((x - z)[finite].abs() <= budget).all()


def test_copies_of_a_sample_agree_and_their_order_does_not_matter(on_device):
    index, log_g, valid = batch(200, 20)
    order = torch.randperm(200)
    estimators = dt.LogMovingAverage(20), dt.LogMovingAverage(20)
    first = estimators[0].propose(index, log_g, valid)
    second = estimators[1].propose(index[order], log_g[order], valid[order])
    for number in range(20):
        assert len(first[(index == number) & valid].unique()) <= 1
    torch.testing.assert_close(second[valid[order]], first[order][valid[order]], rtol=1e-6, atol=1e-6)


def test_accumulated_batches_are_one_batch(on_device):
    parts = [batch(40, 30, seed=seed) for seed in range(2)]
    apart, together = dt.LogMovingAverage(30), dt.LogMovingAverage(30)
    for part in parts:
        apart.propose(*part)
    together.propose(*(torch.cat(x) for x in zip(*parts, strict=True)))
    apart.commit()
    together.commit()
    torch.testing.assert_close(apart.log_u, together.log_u, rtol=1e-6, atol=1e-6)


def test_a_number_outside_the_table_is_named_and_writes_nothing(on_device):
    estimator = dt.LogMovingAverage(4)
    estimator.propose(torch.tensor([2, 7, -3]), torch.ones(3), torch.ones(3, dtype=torch.bool))
    estimator.commit()
    assert estimator.log_u.isfinite().tolist() == [False, False, True, False]
    with pytest.raises(IndexError, match="from 0 to 3, received numbers from -3 to 7"):
        _faults.raise_faults()


def test_an_earlier_proposal_is_not_written_over_a_table_that_has_changed(on_device):
    """Kernels tell autograd's counter, by which a commit knows."""
    estimator = dt.LogMovingAverage(4, gamma=0.5)
    one = torch.tensor([1]), torch.tensor([2.0]), torch.tensor([True])
    version = estimator.log_u._version
    estimator.propose(*one)
    estimator.commit()
    assert estimator.log_u._version > version


@pytest.mark.parametrize("special", [0.0, torch.inf, -torch.inf, torch.nan, 30.0])
def test_the_gradient_is_the_compositional_one(special):
    from dro_temp.kernels.backends.triton import log_table

    log_g, log_u, upstream = torch.randn(3, 40).unbind()
    log_g = log_g.clone()
    log_g[0] = special
    log_u = torch.where(torch.arange(40) == 1, -torch.inf, log_u)
    log_g.requires_grad_()
    F.compositional_log_mean(log_g, log_u).backward(upstream)
    gradient = log_table.compositional_gradient(
        log_g.detach(), log_u, upstream, largest=math.log(LARGEST_RATIO)
    )
    torch.testing.assert_close(gradient, log_g.grad, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("gamma", [1.0, 0.5, 1e-7])
def test_a_mean_far_below_the_past_is_not_lost(gamma):
    from dro_temp.kernels.backends.triton import log_table

    table = torch.zeros(4)
    index, counts = torch.tensor([1]), torch.tensor([True])
    _, found, _ = log_table.averages(index, counts, torch.tensor([-150.0]), table, gamma)
    expected = dt.functional.log_average(torch.zeros(1), torch.tensor([-150.0]), gamma)
    torch.testing.assert_close(found, expected)


def test_a_table_that_is_a_view_is_written(on_device):
    estimator = dt.LogMovingAverage(4)
    state = estimator.state_dict()
    estimator.load_state_dict({**state, "log_u": torch.stack([state["log_u"]] * 2, 1)[:, 0]}, assign=True)
    estimator.propose(torch.tensor([1, 3]), torch.tensor([0.5, 2.0]), torch.ones(2, dtype=torch.bool))
    estimator.commit()
    assert estimator.log_u.tolist() == [-torch.inf, 0.5, -torch.inf, 2.0]
