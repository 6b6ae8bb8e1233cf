"""Rows of earlier batches that temperatures learn from as well."""

import copy
import dataclasses

import pytest
import torch
from queues import RHO, VIEWS, WIDTH, pair_batch, pair_host, queued_objective, values_by_hand

import dro_temp as dt
from dro_temp import functional as F
from dro_temp.objective.reduction import tau_loss_terms


def _replaying(size: int = 12, replay: int = 5) -> dt.QueuedLoss:
    return dt.QueuedLoss(dt.KLRobustLoss(RHO), size=size, features=WIDTH, replay=replay).double()


def _tempnet() -> dt.TempNet:
    torch.manual_seed(3)
    net = dt.TempNet(
        dt.predictors.HiddenEncoder(WIDTH, width=8),
        tau_min=0.05,
        tau_max=1.0,
        readout=dt.predictors.ResidualReadout,
    ).double()
    torch.nn.init.normal_(net.readout.last.weight)  # not the same temperature for all
    return net


def _filled(loss: dt.QueuedLoss, batches: int = 3) -> dt.QueuedLoss:
    host = pair_host()
    for step in range(batches):
        loss(host(**pair_batch(6, step, samples=15))["image"], 0.5)
        loss.queue.commit()
    return loss


@pytest.mark.parametrize("batches", [2, 3, 4, 7])
def test_values_are_those_of_loops_over_the_drawn_rows(batches):
    """Samples come again within the queue here: neither a row's own earlier key nor its double may be an outcome."""
    loss, net = _filled(_replaying(), batches), _tempnet()
    queue = loss.queue
    place = queue.drawn(5)
    assert 0 < len(place) <= 5
    number = queue.number[place]
    assert len(set(number.tolist())) == len(place)
    queries, keys = queue.queries[place], queue.keys[place]
    earlier = list(zip(queue.keys, queue.number.tolist(), strict=True))
    found = loss.replayed(net)
    torch.testing.assert_close(found.tau, net(queries))
    expected = values_by_hand(queries, keys, number, found.tau.detach(), earlier)
    torch.testing.assert_close(found.values.tolist(), expected, rtol=1e-9, atol=1e-12)


def test_queries_lie_beside_their_keys():
    host, loss = pair_host(), _replaying(size=6, replay=2)
    rows = host(**pair_batch(6, 0))["text"]
    loss(rows, 0.5)
    loss.queue.commit()
    for query, key, number in zip(loss.queue.queries, loss.queue.keys, loss.queue.number, strict=True):
        i = rows.index.tolist().index(int(number))
        assert torch.equal(query, rows.scores.queries[i])
        assert torch.equal(key, rows.scores.keys[i])


def _step(
    objective: dt.Objective, optimizer: dt.CompositionalOptimizer, seed: int
) -> dt.objective.ObjectiveOutput:
    output = objective(**pair_batch(6, seed, samples=15))
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
    return output


def _training(replay: int = 5) -> tuple[dt.Objective, dt.CompositionalOptimizer]:
    objective = queued_objective(tau_loss={view: _replaying(replay=replay) for view in VIEWS})
    groups = objective.param_groups(lr=1e-3, tau_lr=1e-2)
    return objective, dt.CompositionalOptimizer(torch.optim.AdamW(groups), objective)


def test_the_predictor_learns_from_the_mean_over_both():
    objective, optimizer = _training()
    for seed in range(3):
        _step(objective, optimizer, seed)
    output = objective(**pair_batch(6, 9, samples=15))
    optimizer.zero_grad()
    output.loss.backward()
    rows = objective.host(**pair_batch(6, 9, samples=15))
    means = []
    for view in VIEWS:
        predictor, loss = objective.predictors[view], objective.tau_losses[view]
        tau = predictor.predict(rows[view].detached())
        own = loss(rows[view].detached(), tau)
        means.append(torch.cat([own, loss.replayed(predictor).values]).mean())
        torch.testing.assert_close(output.metrics[f"{view}/tau_loss"], means[-1].detach())
    wanted = torch.autograd.grad(sum(means) / 2, list(objective.predictors.parameters()))
    for p, gradient in zip(objective.predictors.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [None, 10.0])
def test_the_mean_over_both_is_one_of_weights(count):
    """Each replayed row weighs one, beside rows of any weight; by a count, as the batch's part of the whole does."""
    loss, net = _filled(_replaying()), _tempnet()
    rows = pair_host()(**pair_batch(6, 9, samples=15))["image"]
    weight = torch.tensor([1.0, 0.0, 3.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    weighted = dataclasses.replace(rows, weight=weight).detached()
    own = loss.evaluate(weighted, net)
    found = tau_loss_terms({"v": weighted}, {"v": own}, {"v": net}, {"v": loss}, count, True)["v"]
    replayed = loss.replayed(net).values
    total, rows_in_all = (weight @ own.values) + replayed.sum(), 6.5 + len(replayed)
    wanted = total / rows_in_all if count is None else total / rows_in_all * (6.5 / count)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0.0)


def test_the_host_does_not_learn_from_it():
    """Replay changes temperatures, and the encoders through these alone."""
    with_replay, without = (_training(replay)[0] for replay in (5, 0))
    output = [objective(**pair_batch(6, 0)) for objective in (with_replay, without)]
    for x in output:
        x.loss.backward()
    for p, q in zip(with_replay.host.parameters(), without.host.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_it_draws_nothing_of_the_training_and_goes_on_after_a_resume():
    objective, optimizer = _training()
    for seed in range(3):
        _step(objective, optimizer, seed)
    again, optimizer_again = _training()
    again.load_state_dict(objective.state_dict())
    optimizer_again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    output = _step(objective, optimizer, 5)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    assert torch.equal(output.loss, _step(again, optimizer_again, 5).loss)
    for a, b in zip(objective.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_step_draws_others():
    loss = _filled(_replaying(size=12, replay=4), 4)
    first = set(loss.queue.drawn(4).tolist())
    _filled(loss, 1)
    assert set(loss.queue.drawn(4).tolist()) != first


def test_keys_without_a_row_are_not_drawn():
    loss = _replaying(size=6, replay=6)
    torch.manual_seed(0)
    queries, keys = (torch.randn(n, WIDTH, dtype=torch.float64) for n in (4, 6))
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    rows = dt.Rows(
        dt.LinearScores(queries, keys),
        torch.tensor([0, 1, 3, 4]),
        queries,
        torch.tensor([10, 11, 13, 14]),
        target_in_support=False,
        weight=weight,
    )
    loss(rows, 0.5)
    loss.queue.commit()
    drawn = {n for seen in range(40) for n in _drawn_at(loss, seen)}
    assert drawn == {10, 13, 14}


def _drawn_at(loss: dt.QueuedLoss, seen: int) -> list[int]:
    loss.queue.seen.fill_(seen)
    return loss.queue.number[loss.queue.drawn(6)].tolist()


def test_who_does_not_learn_from_features_has_no_replay():
    loss, net = _filled(_replaying()), _tempnet()
    assert loss.replayed(net) is not None
    assert loss.replayed(dt.LearnableTemperature(0.5, tau_min=0.1, tau_max=1.0)) is not None
    assert loss.replayed(dt.IndividualTemperature(15, tau_min=0.1, tau_max=1.0)) is None
    assert loss.replayed(dt.TempNet(dt.predictors.StatisticsEncoder(), tau_min=0.1, tau_max=1.0)) is None
    assert loss.replayed(dt.ConstantTemperature(0.5)) is None
    with torch.no_grad():
        assert loss.replayed(net) is None
    assert loss.eval().replayed(net) is None
    assert _replaying().replayed(net) is None  # not full
    assert _filled(_replaying(replay=0)).replayed(net) is None


def test_bad_input_says_what_to_type(no_shape_checks):
    with pytest.raises(ValueError, match=r"replay of at most 4"):
        dt.QueuedLoss(dt.KLRobustLoss(RHO), size=4, features=2, replay=5)
    with pytest.raises(ValueError, match=r"replay >= 0"):
        dt.QueuedLoss(dt.KLRobustLoss(RHO), size=4, features=2, replay=-1)
    remembering = dt.KLRobustLoss(RHO, estimator=dt.LogMovingAverage(10))
    with pytest.raises(ValueError, match=r"without an estimator"):
        dt.QueuedLoss(remembering, size=4, features=2, replay=2)
    queries = torch.randn(3, WIDTH, dtype=torch.float64)
    plain = dt.LinearScores(queries, queries)
    scaled = dt.LinearScores(queries, queries, transform=F.Scale(2.0))
    for scores, features in ((plain, queries + 1), (plain, None), (plain, queries[:, :2]), (scaled, queries)):
        rows = dt.Rows(scores, torch.arange(3), features, target_in_support=False)
        with pytest.raises(ValueError, match=r"replay=0"):
            _replaying()(rows, 0.5)
