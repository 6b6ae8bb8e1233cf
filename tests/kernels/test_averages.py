"""The kernels of moving averages against PyTorch's version, interpreted."""

import pytest
import torch

import dro_temp as dt
from dro_temp import _faults
from dro_temp.estimators import moving_average
from dro_temp.functional import combine_duplicates, log_average

pytest.importorskip("triton", reason="Triton is not installed")
averages = pytest.importorskip("dro_temp.kernels.backends.triton.averages")

SAMPLES = 50


def inputs(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(SAMPLES, (n,), generator=generator)
    log_g = 30 * torch.randn(n, generator=generator)
    valid = torch.rand(n, generator=generator) > 0.2
    table = 30 * torch.randn(SAMPLES, generator=generator)
    table[::3] = -torch.inf
    return table, index, log_g, valid


@pytest.mark.parametrize("n", [1, 15, 200])
@pytest.mark.parametrize("gamma", [0.7, 1.0])
@pytest.mark.parametrize("scheduled", [True, False])
def test_averages_are_those_of_pytorch(n, gamma, scheduled):
    table, index, log_g, valid = inputs(n)
    weight = torch.tensor(gamma, dtype=torch.float64)
    logs = (torch.log1p(-weight).item(), weight.log().item())
    kept, updated = averages.moving_average(table, index, log_g, valid, weight if scheduled else logs)
    expected_kept = index.masked_fill(~valid, -1)
    assert torch.equal(kept, expected_kept)
    # Float64 is the truth: the kernel may be off by twice what PyTorch's float32 is, and a rounding.
    truth, plain = (
        log_average(table.to(d)[index], combine_duplicates(expected_kept, log_g.to(d)), gamma)[valid]
        for d in (torch.float64, torch.float32)
    )
    allowed = 2 * (plain - truth).abs().max() + 1e-6 * truth.abs().max() if n > 1 else 1e-4
    assert (updated[valid] - truth).abs().max() <= allowed


def test_rows_of_one_sample_agree_to_the_bit_and_order_changes_roundings_only():
    table, index, log_g, _ = inputs(90)
    _, updated = averages.moving_average(table, index, log_g, None, (-1.2, -0.4))
    for number in index.unique():
        assert updated[index == number].unique().numel() == 1
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    _, shuffled = averages.moving_average(table, index[order], log_g[order], None, (-1.2, -0.4))
    torch.testing.assert_close(shuffled, updated[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_or_outside_changes_nothing(wrong):
    table, index, log_g, _ = inputs(20)
    index = torch.arange(20)
    index[5], index[6], index[7], index[8] = 3, SAMPLES, -4, 10**12
    log_g[5] = wrong
    kept, updated = averages.moving_average(table, index, log_g, None, (-1.2, -0.4))
    assert kept[5:9].tolist() == [-1] * 4
    alone = averages.moving_average(table, index[:5], log_g[:5], None, (-1.2, -0.4))[1]
    assert torch.equal(updated[:5], alone), "nor the other row of its sample"
    before, version = table.clone(), table._version
    averages.write(table, kept, updated)
    assert table._version > version
    counted = kept[kept >= 0]
    assert torch.equal(table[counted], updated[kept >= 0])
    others = torch.ones(SAMPLES, dtype=torch.bool).index_fill(0, counted, False)
    assert torch.equal(table[others], before[others])


@pytest.mark.parametrize("gamma", [0.6, dt.estimators.CosineGamma(0.2, epochs=3)])
def test_an_estimator_with_kernels_is_the_same_estimator(gamma, monkeypatch):
    monkeypatch.setattr(_faults, "everywhere", True)
    monkeypatch.setattr(_faults, "pending", _faults._Pending())
    results = []
    for kernels in (None, averages):
        monkeypatch.setattr(moving_average, "_kernels", lambda table, values, kernels=kernels: kernels)
        estimator, proposals = dt.LogMovingAverage(SAMPLES, gamma=gamma), []
        for step in range(4):
            for part in range(1 + step % 2):  # one proposal, and two before a commit
                _, index, log_g, valid = inputs(30, seed=10 * step + part)
                log_g.requires_grad_()
                proposals.append(estimator.propose(index, log_g, valid).masked_fill(~valid, 0.0))
            estimator.commit()
        results.append((torch.cat(proposals), estimator.log_u, estimator.steps))
    for ours, plain in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
