"""Temperatures of many rows are predicted block by block, and nobody can tell."""

import pytest
import torch
from torch.nn.utils import parameters_to_vector

import dro_temp as dt
from dro_temp import _autograd

N = 23


@pytest.fixture(params=[1, 7, N - 1, N])
def rows(request, monkeypatch):
    monkeypatch.setattr(_autograd, "BLOCK_OF_ROWS", request.param)
    g = torch.Generator().manual_seed(0)
    features = torch.randn(N, 4, generator=g, dtype=torch.float64)
    return dt.Rows(torch.zeros(N, 2), torch.zeros(N, dtype=torch.long), features)


def _tempnet(dropout=0.0):
    torch.manual_seed(1)
    encoder = dt.predictors.PrototypeEncoder(4, prototypes=3, dropout=dropout)
    return dt.TempNet(encoder, tau_min=0.1, tau_max=2.0).double()


def _gradient(tempnet, tau):
    weights = torch.arange(1.0, N + 1, dtype=tau.dtype)
    return parameters_to_vector(torch.autograd.grad((weights * tau).sum(), list(tempnet.parameters())))


def test_equals_one_call(rows):
    tempnet = _tempnet()
    whole = tempnet(rows.features)
    in_blocks = tempnet.predict(rows)
    torch.testing.assert_close(in_blocks, whole, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(
        _gradient(tempnet, in_blocks), _gradient(tempnet, whole), rtol=1e-12, atol=1e-14
    )


def test_backward_drops_what_forward_dropped(rows):
    tempnet = _tempnet(dropout=0.5)
    torch.manual_seed(2)
    tau = tempnet.predict(rows)
    torch.manual_seed(2)
    step = _autograd.BLOCK_OF_ROWS
    whole = torch.cat([tempnet(rows.features[i : i + step]) for i in range(0, N, step)])
    torch.testing.assert_close(tau, whole, rtol=0.0, atol=0.0)
    state = torch.get_rng_state()
    found = _gradient(tempnet, tau)
    assert torch.equal(torch.get_rng_state(), state)  # backward leaves what is drawn next as it was
    torch.testing.assert_close(found, _gradient(tempnet, whole), rtol=1e-12, atol=1e-14)


def test_hooks_see_the_gradient_of_all_rows_once(rows):
    tempnet, seen = _tempnet(), []
    tempnet.readout.last.weight.register_hook(seen.append)
    tempnet.predict(rows).sum().backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], tempnet.readout.last.weight.grad)


def test_parameters_that_are_not_trained_stay_without_gradient(rows):
    tempnet = _tempnet()
    tempnet.readout.last.weight.requires_grad_(False)
    tempnet.predict(rows).sum().backward()
    assert tempnet.readout.last.weight.grad is None
    assert all(p.grad is not None for p in tempnet.parameters() if p.requires_grad)


def test_a_second_derivative_is_refused_in_blocks_only(rows):
    tempnet = _tempnet()
    tau = tempnet.predict(rows).sum()
    if _autograd.BLOCK_OF_ROWS >= N:
        torch.autograd.grad(tau, tempnet.readout.last.weight, create_graph=True)
    else:
        with pytest.raises(RuntimeError, match="Call the predictor itself"):
            torch.autograd.grad(tau, tempnet.readout.last.weight, create_graph=True)


def test_without_gradient(rows):
    tempnet = _tempnet()
    with torch.no_grad():
        assert not tempnet.predict(rows).requires_grad


def test_under_autocast_backward_computes_as_forward_did(rows):
    tempnet = _tempnet().float()
    rows = dt.Rows(rows.scores, rows.target, rows.features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        in_blocks, whole = tempnet.predict(rows), tempnet(rows.features)
    torch.testing.assert_close(in_blocks, whole, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(_gradient(tempnet, in_blocks), _gradient(tempnet, whole), rtol=0.02, atol=0.02)
