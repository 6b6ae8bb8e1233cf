"""The loss over a queue of keys, and predictors that learn from another loss than the host."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import in_processes
from queues import RHO, VIEWS, WIDTH, pair_batch, pair_host, queued_objective, values_by_hand
from torch import nn

import dro_temp as dt
from dro_temp import functional as F


def _queued(size: int) -> dt.QueuedLoss:
    return dt.QueuedLoss(dt.KLRobustLoss(RHO), size=size, features=WIDTH)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(3, 20), n=st.integers(2, 9), steps=st.integers(0, 6))
def test_the_value_is_that_of_loops_over_queue_and_batch(seed, size, n, steps):
    host, loss, earlier = pair_host(), _queued(size), []
    loss.queue.double()
    for step in range(steps):
        rows = host(**pair_batch(n, seed + step))["image"]
        loss(rows, 0.5)
        loss.queue.commit()
        earlier += list(zip(rows.scores.keys.detach(), rows.index.tolist(), strict=True))
    rows = host(**pair_batch(n, seed + 1000))["image"]
    tau = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.2
    found = loss(rows, tau)
    if len(earlier) < size:
        assert found.tolist() == [0.0] * n  # waits
    else:
        scores = rows.scores.detached()
        expected = values_by_hand(scores.queries, scores.keys, rows.index, tau, earlier[-size:])
        torch.testing.assert_close(found.tolist(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("apart", [False, True])
def test_earlier_keys_of_a_row_s_own_group_are_left_out(apart):
    """Groups of images and of texts may differ: a row's is compared with those of the keys."""
    host, loss, earlier = pair_host(), _queued(9), []
    loss.queue.double()
    for step in range(4):
        batch = pair_batch(5, step)
        images = batch["index"] % 6 - 1
        texts = images.roll(2) if apart else images
        rows = host(**batch, group=(images, texts) if apart else images)["image"].detached()
        tau = torch.linspace(0.3, 0.9, 5, dtype=torch.float64)
        found = loss(rows, tau)
        if step >= 2:
            keys = torch.cat([torch.stack([key for key, _, _ in earlier[-9:]]), rows.scores.keys])
            groups = torch.tensor([group for _, _, group in earlier[-9:]] + texts.tolist())
            stale = torch.tensor([number in batch["index"] for _, number, _ in earlier[-9:]] + [False] * 5)
            for i in range(5):
                mine = (groups == images[i]) & (images[i] >= 0)
                outcomes = ~(mine | stale)
                outcomes[9 + i] = False
                h = (keys @ rows.scores.queries[i] - rows.scores.keys[i] @ rows.scores.queries[i])[outcomes]
                log_g = (h / tau[i]).logsumexp(0) - math.log(len(h))
                torch.testing.assert_close(found[i], tau[i] * (log_g + RHO), rtol=1e-9, atol=1e-12)
        loss.queue.commit()
        earlier += list(zip(rows.scores.keys, batch["index"].tolist(), texts.tolist(), strict=True))


def test_how_full_a_queue_is_follows_what_is_loaded():
    """The number is remembered on the host, and read anew where the buffer has changed."""
    loss, other = _queued(4), _queued(4)
    loss.queue.stage(torch.zeros(3, WIDTH), torch.arange(3))
    loss.queue.commit()
    assert (len(loss.queue), len(other.queue)) == (3, 0)
    other.load_state_dict(loss.state_dict())
    assert len(other.queue) == 3
    assert len(copy.deepcopy(other).queue) == 3
    other.queue.seen.zero_()
    assert len(other.queue) == 0


def test_forward_reads_and_commit_writes():
    host, loss = pair_host(), _queued(8)
    rows = host(**pair_batch(5, 0))["image"]
    before = copy.deepcopy(loss.state_dict())
    loss(rows, 0.5)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    loss.queue.discard()
    loss.queue.commit()
    assert len(loss.queue) == 0
    loss.eval()
    loss(rows, 0.5)
    assert not loss.queue.pending
    loss.train()
    with torch.no_grad():
        loss(rows, 0.5)
    assert not loss.queue.pending


def test_the_newest_keys_stay():
    loss = _queued(3)
    keys = torch.arange(20.0).reshape(5, WIDTH)
    loss.queue.stage(keys[:2], torch.tensor([0, 1]))
    loss.queue.stage(keys[2:], torch.tensor([2, 3, 4]))
    loss.queue.commit()
    assert sorted(loss.queue.number.tolist()) == [2, 3, 4]
    loss.queue.stage(keys[:1], torch.tensor([9]))
    loss.queue.commit()
    assert sorted(loss.queue.number.tolist()) == [3, 4, 9]
    place = loss.queue.number.tolist().index(9)
    assert torch.equal(loss.queue.keys[place], keys[0])


def test_saving_and_loading_goes_on_bit_for_bit():
    host, first, second = pair_host(), _queued(7), _queued(7)
    for step in range(4):
        first(host(**pair_batch(5, step))["image"], 0.5)
        first.queue.commit()
    second.load_state_dict(first.state_dict())
    for step in range(4, 8):
        rows = host(**pair_batch(5, step))["image"]
        assert torch.equal(first(rows, 0.5), second(rows, 0.5))
        first.queue.commit()
        second.queue.commit()
    with pytest.raises(ValueError, match="expected the memory of"):
        _queued(9).load_state_dict(first.state_dict())


def test_classes_and_matrices_are_evaluated_alone():
    torch.manual_seed(0)
    rows = dt.Rows(torch.randn(4, 10), torch.arange(4))
    loss = _queued(5)
    torch.testing.assert_close(loss(rows, 0.5), dt.KLRobustLoss(RHO)(rows, 0.5))
    head = dt.Rows(dt.LinearScores(torch.randn(4, WIDTH), torch.randn(10, WIDTH)), torch.arange(4))
    torch.testing.assert_close(loss(head, 0.5), dt.KLRobustLoss(RHO)(head, 0.5))
    assert not loss.queue.pending


def test_streaming_and_matrices_agree():
    """Stale keys are left out of the product, not masked in a matrix: every path can take the rows."""
    found = []
    for backend in ("reference", "torch", "cpu"):
        host, loss = (
            pair_host().float(),
            dt.QueuedLoss(dt.KLRobustLoss(RHO, backend=backend), size=9, features=WIDTH),
        )
        for step in range(4):
            batch = {k: x.float() if x.is_floating_point() else x for k, x in pair_batch(6, step).items()}
            rows = host(**batch)["image"].detached()
            tau = torch.full((6,), 0.4, requires_grad=True)
            values = loss(rows, tau)
            loss.queue.commit()
        found.append([values.detach(), *torch.autograd.grad(values.sum(), tau)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


def test_bad_input_says_what_to_type(no_shape_checks):
    with pytest.raises(TypeError, match=r"expected loss .* KLRobustLoss"):
        dt.QueuedLoss(nn.Linear(2, 2), size=4, features=2)
    with pytest.raises(ValueError, match="size"):
        _queued(0)
    loss = dt.QueuedLoss(dt.KLRobustLoss(RHO), size=4, features=3)
    with pytest.raises(ValueError, match=r"features=4"):
        loss(pair_host()(**pair_batch(3, 0))["image"], 0.5)


def test_host_and_predictors_learn_from_their_own_losses():
    """The host's gradient is that of the main loss at fixed temperatures, the predictors' that of the tau_loss."""
    both = queued_objective(tau_loss=dt.KLRobustLoss(2.0))
    output = both(**pair_batch(12, 3))
    output.loss.backward()

    alone = queued_objective()
    alone(**pair_batch(12, 3)).loss.backward()
    for (name, p), q in zip(both.host.named_parameters(), alone.host.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-13, msg=name)

    other = queued_objective()
    rows = other.host(**pair_batch(12, 3))
    losses = []
    for view in other.host.views:
        tau = other.predictors[view].predict(rows[view])
        margins = rows[view].margins.detach()
        losses.append(F.kl_dual(margins, tau, rho=2.0, mask=rows[view].mask).mean())
    torch.stack(losses).mean().backward()
    for (name, p), q in zip(both.predictors.named_parameters(), other.predictors.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-13, msg=name)
    assert set(output.tau_values) == {"image", "text"}
    total = sum(output.metrics[f"{v}/{k}"] for v in ("image", "text") for k in ("loss", "tau_loss")) / 2
    torch.testing.assert_close(output.metrics["loss"], total)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_predictor_of_scores_is_shown_the_batch_as_in_an_evaluation(backend):
    """The queue is what its temperatures are judged by, and not what they are predicted from."""
    host = pair_host()
    predictors = {
        view: dt.TempNet(dt.predictors.StatisticsEncoder(width=8), tau_min=0.05, tau_max=2.0).double()
        for view in VIEWS
    }
    tau_losses = {
        view: dt.QueuedLoss(dt.KLRobustLoss(RHO, backend=backend), size=12, features=WIDTH) for view in VIEWS
    }
    objective = dt.Objective(host, predictors, dt.KLRobustLoss(RHO, backend=backend), tau_loss=tau_losses)
    optimizer = dt.CompositionalOptimizer(torch.optim.SGD(objective.param_groups(lr=0.0), lr=0.0), objective)
    for step in range(4):
        batch = pair_batch(6, step) | {"index": torch.arange(6) + 6 * step}
        objective(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(len(loss.queue) == 12 for loss in tau_losses.values())
    batch["index"] = batch["index"] + 100
    output, rows = objective(**batch), host(**batch)
    output.loss.backward()
    for view, predictor in predictors.items():
        expected = predictor.predict(rows[view])
        torch.testing.assert_close(output.tau[view], expected, rtol=1e-9, atol=0)
        values = tau_losses[view](rows[view].detached(), expected) / len(VIEWS)
        wanted = torch.autograd.grad(values.mean(), list(predictor.parameters()), allow_unused=True)
        for parameter, gradient in zip(predictor.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-12)


def test_labels_may_teach_temperatures_of_a_frozen_host():
    torch.manual_seed(0)
    host = dt.hosts.Classifier(nn.Linear(6, 4), nn.Linear(4, 3), frozen=True)
    net = dt.TempNet(
        dt.predictors.HiddenEncoder(4, width=8),
        tau_min=0.1,
        tau_max=4.0,
        readout=dt.predictors.ResidualReadout,
    )
    objective = dt.Objective(host, net, dt.KLRobustLoss(0.3), tau_loss=dt.LikelihoodLoss())
    output = objective(torch.randn(9, 6), torch.randint(3, (9,)))
    output.loss.backward()
    assert net.readout.last.bias.grad.abs() > 0


def test_steps_fill_the_queue_and_individual_temperatures_learn_from_it():
    host = pair_host()
    predictor = {v: dt.IndividualTemperature(40, tau_min=0.05, tau_max=1.0) for v in host.views}
    loss = {v: dt.KLRobustLoss(RHO, estimator=dt.LogMovingAverage(40)) for v in host.views}
    objective = dt.Objective(host, predictor, loss, tau_loss={v: _queued(10) for v in host.views})
    optimizer = dt.CompositionalOptimizer(torch.optim.SGD(objective.param_groups(lr=0.1)), objective)
    start = predictor["image"].tau.clone()
    for step in range(5):
        objective(**pair_batch(8, step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = not torch.equal(start, predictor["image"].tau)
        assert moved == (step >= 2)  # 16 keys were there from the third step on
    assert len(objective.tau_losses["text"].queue) == 10


def test_one_queue_for_two_views_is_refused():
    with pytest.raises(ValueError, match="memory of its own for each view"):
        queued_objective(tau_loss=_queued(10))


def test_one_memory_for_a_loss_and_a_tau_loss_is_refused():
    """Between views a sample's number means another row; in one view it would be written at two temperatures."""
    first, second = ({v: dt.LogMovingAverage(40) for v in VIEWS} for _ in range(2))

    def losses(estimators):
        return {v: dt.KLRobustLoss(0.5, estimator=estimator) for v, estimator in estimators.items()}

    turned = {"image": first["text"], "text": first["image"]}
    with pytest.raises(
        ValueError, match=r"loss of view 'text' and the tau_loss of view 'image': sample 7 would"
    ):
        dt.Objective(pair_host(), dt.ConstantTemperature(0.5), losses(first), tau_loss=losses(turned))
    with pytest.raises(
        ValueError, match=r"loss of view 'image' and the tau_loss of view 'image': it would be written"
    ):
        dt.Objective(pair_host(), dt.ConstantTemperature(0.5), losses(first), tau_loss=losses(first))
    dt.Objective(pair_host(), dt.ConstantTemperature(0.5), losses(first), tau_loss=losses(second))


def _train_share(rank: int, world: int, replay: int = 0, even: bool = True) -> dict[str, torch.Tensor]:
    queued = {v: dt.QueuedLoss(dt.KLRobustLoss(RHO), size=11, features=WIDTH, replay=replay) for v in VIEWS}
    objective = queued_objective(tau_loss={view: loss.double() for view, loss in queued.items()})
    optimizer = dt.CompositionalOptimizer(
        torch.optim.SGD(objective.param_groups(lr=0.1, tau_lr=0.5)), objective
    )
    for step in range(4):
        sizes = (8,) if world == 1 else (4, 4) if even else (3, 5)
        batch = {name: x.split(sizes)[rank] for name, x in pair_batch(8, step).items()}
        objective(**batch).loss.backward()
        if world > 1:
            for p in objective.parameters():
                torch.distributed.all_reduce(p.grad)
                p.grad /= world
        optimizer.step()
        optimizer.zero_grad()
    return {name: x.clone() for name, x in objective.state_dict().items()}


def _train_share_with_replay(rank: int, world: int) -> dict[str, torch.Tensor]:
    return _train_share(rank, world, replay=6)


def _train_uneven_shares_with_replay(rank: int, world: int) -> dict[str, torch.Tensor]:
    return _train_share(rank, world, replay=6, even=False)


@pytest.mark.parametrize("train", [_train_share, _train_share_with_replay, _train_uneven_shares_with_replay])
def test_two_processes_equal_one(train):
    alone = train(0, 1)
    for state in in_processes(2, train):
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-12, msg=name)
