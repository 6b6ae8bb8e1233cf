"""An objective over two towers whose views share their tiles, and over a head; alone and in several processes."""

import pytest
import small
import torch
from processes import in_processes
from streams import blocks_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dro_temp as dt

STEPS = 20


def _objective(predictor, backends, **options) -> dt.Objective:
    """That of `small`, each view's loss with its own path."""
    objective = small.objective(predictor, **options)
    for view, backend in zip(objective.host.views, backends, strict=True):
        objective.losses[view].backend = backend
    return objective


def _train(predictor, backends, steps=STEPS):
    images, texts = small.data()
    objective = _objective(predictor, backends)
    optimizer, gradients = small.optimizer(objective), []
    for index in small.batches(steps, size=7):
        output = objective(images[index], texts[index], index=index)
        output.loss.backward()
        gradients.append([p.grad.clone() for p in objective.parameters()])
        optimizer.step()
        optimizer.zero_grad()
    return objective, output, gradients


@pytest.mark.parametrize("backends", [("torch", "torch"), ("reference", "torch"), ("torch", "reference")])
@pytest.mark.parametrize("predictor", ["tempnet", "individual", "learnable", "constant"])
def test_twenty_steps_equal_eager(predictor, backends, monkeypatch):
    calls = []
    kernel = dt.losses.log_mean_exp.pair_log_sums
    monkeypatch.setattr(
        dt.losses.log_mean_exp,
        "pair_log_sums",
        lambda *args, **options: calls.append(1) or kernel(*args, **options),
    )
    with blocks_of(3):
        ours, output, gradients = _train(predictor, backends)
    theirs, expected, true_gradients = _train(predictor, ("reference", "reference"))
    assert [output.backend[view].name for view in ours.host.views] == list(backends)
    assert len(calls) == (STEPS if backends == ("torch", "torch") else 0)
    torch.testing.assert_close(gradients, true_gradients, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(output.values, expected.values, rtol=1e-9, atol=1e-10)
    small.assert_same_state(ours, theirs, digits=1e-10)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_frozen_pair_of_towers_shares_its_tiles(backend):
    images, texts = small.data()
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(nn.Linear(5, 4), nn.Linear(5, 4), frozen=True)
    tempnet = dt.TempNet(4, tau_min=0.05, tau_max=1.0, prototypes=6, dropout=0.0)
    objective = dt.Objective(host, tempnet, dt.KLRobustLoss(0.5, backend=backend)).double()
    output = objective(images, texts)
    output.loss.backward()
    assert output.backend["image"].name == output.backend["text"].name == backend
    assert all(p.grad is None for p in host.parameters())
    rows = host(images, texts)
    loss = sum(dt.KLRobustLoss(0.5, backend="reference")(r, tempnet).mean() for r in rows.values()) / 2
    expected = torch.autograd.grad(loss, list(tempnet.parameters()))
    torch.testing.assert_close([p.grad for p in tempnet.parameters()], list(expected))
    torch.testing.assert_close(output.loss, loss)


def _rank(rank: int, world: int, predictor: str, wrap: bool = True) -> dict[str, list]:
    images, texts = small.data()
    objective = _objective(predictor, ("torch", "torch"))
    optimizer = small.optimizer(objective)
    model = DistributedDataParallel(objective) if wrap else objective
    with blocks_of(2):
        for index in small.batches(6, size=12):
            index = index.chunk(world)[rank]
            output = model(images[index], texts[index], index=index)
            assert output.backend["image"].name == "torch"
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.tolist() for name, value in objective.state_dict().items()}


def _head(backend: str):
    torch.manual_seed(0)
    host = dt.hosts.Classifier(nn.Linear(6, 3), nn.Linear(3, 11))
    tempnet = dt.TempNet.for_logits(11, tau_min=0.3, tau_max=2.0, width=5, dropout=0.0)
    return dt.Objective(host, tempnet, dt.KLRobustLoss(0.5, backend=backend)).double()


def _head_gradients(rank: int, world: int, backend: str, wrap: bool) -> list:
    objective = _head(backend)
    g = torch.Generator().manual_seed(3)
    inputs, labels = torch.randn(8, 6, generator=g).double(), torch.randint(11, (8,), generator=g)
    labels[2] = -100
    model = DistributedDataParallel(objective) if wrap else objective
    with blocks_of(2):
        model(inputs.chunk(world)[rank], labels.chunk(world)[rank]).loss.backward()
    return [p.grad.tolist() for p in objective.parameters()]


def _ranks(rank: int, world: int, wrap: bool = True, backend: str = "torch"):
    """All that is compared, so that processes are started once."""
    states = {predictor: _rank(rank, world, predictor, wrap) for predictor in ("tempnet", "individual")}
    return states, _head_gradients(rank, world, backend, wrap)


def test_two_processes_train_as_one():
    states, gradients = _ranks(0, 1, wrap=False)
    eager = _head_gradients(0, 1, "reference", wrap=False)
    for found_states, found_gradients in in_processes(2, _ranks):
        for predictor, state in states.items():
            for name, value in state.items():
                found, expected = (
                    torch.tensor(x, dtype=torch.float64) for x in (found_states[predictor][name], value)
                )
                small.assert_same_to_rounding(found, expected, small.TRAINED_APART, name)
        for found, ours, theirs in zip(found_gradients, gradients, eager, strict=True):
            found, ours, theirs = (torch.tensor(x, dtype=torch.float64) for x in (found, ours, theirs))
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found, theirs, rtol=1e-10, atol=1e-12)
