"""Rows of weight zero change nothing, whatever they hold; and a pair that is alone in its batch is a row."""

import math

import pytest
import torch
from queues import RHO, WIDTH, pair_batch, pair_host
from torch import nn

import dro_temp as dt

JUNK = (math.nan, math.inf, -math.inf, 3e38)
LOSSES = {
    "kl": lambda: dt.KLRobustLoss(0.5),
    "torch": lambda: dt.KLRobustLoss(0.5, backend="torch"),
    "cpu": lambda: dt.KLRobustLoss(0.5, backend="cpu"),
    "held": lambda: dt.KLRobustLoss(0.5, estimator=dt.LogMovingAverage(9)),
    "infonce": dt.InfoNCELoss,
    "likelihood": dt.LikelihoodLoss,
    "entropic": dt.EntropicRiskLoss,
    "sigmoid": dt.SigmoidLoss,
    "sigmoid, streamed": lambda: dt.SigmoidLoss(backend="torch"),
}
PREDICTORS = {
    "a number": lambda: 0.7,
    "network of features": lambda: dt.TempNet(3, tau_min=0.1, tau_max=2.0, dropout=0.0),
    "network of scores": lambda: dt.TempNet.for_logits(9, tau_min=0.1, tau_max=2.0, dropout=0.0),
    "network of statistics": lambda: dt.TempNet(
        dt.predictors.StatisticsEncoder(), tau_min=0.1, tau_max=2.0, dropout=0.0
    ),
    "table": lambda: dt.IndividualTemperature(9, tau_min=0.1, tau_max=2.0),
    "optimum": lambda: dt.OptimalTemperature(0.5, tau_min=0.1, tau_max=2.0),
}


def _gradients(make_loss, make_predictor, rows: int, junk: float | None, transform=None):
    torch.manual_seed(0)
    h, w, bias = torch.randn(4, 3), torch.randn(9, 3, requires_grad=True), torch.randn(9, requires_grad=True)
    if junk is not None:
        h[3] = junk
    h = h[:rows].clone().requires_grad_()
    weight = torch.tensor([1.0, 2.0, 1.0, 0.0])[:rows]
    target = torch.tensor([0, 1, 2, -100])[:rows]
    index = torch.tensor([3, 4, 5, -7])[:rows]
    loss, predictor = make_loss(), make_predictor()
    made = dt.Rows(dt.LinearScores(h, w, bias, transform), target, h, index=index, weight=weight)
    values = loss(made, predictor)
    (weight * values).sum().backward()
    trained = [*loss.parameters()]
    if isinstance(predictor, nn.Module):
        trained += list(predictor.parameters())
    gradients = [w.grad, bias.grad, h.grad[:3], *(p.grad for p in trained)]
    return values[:3].detach(), [g for g in gradients if g is not None], h.grad[3:]


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_without_weight_may_hold_anything(loss, predictor):
    make = LOSSES[loss], PREDICTORS[predictor]
    for transform in (None, dt.functional.SoftCap(3.0)):
        values, wanted, _ = _gradients(*make, rows=3, junk=None, transform=transform)
        for junk in JUNK:
            ours, found, out = _gradients(*make, rows=4, junk=junk, transform=transform)
            torch.testing.assert_close(ours, values)
            assert len(found) == len(wanted)
            for ours, right in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, right)
            assert not bool(out.any())


@pytest.mark.parametrize("junk", JUNK)
def test_beside_a_reference(junk):
    x = torch.randn(4, 5)
    x[3] = junk
    first, second = nn.Linear(5, 4), nn.Linear(5, 4)
    host = dt.hosts.Classifier(nn.Identity(), first)
    for reference in (
        dt.hosts.Classifier(nn.Identity(), second, frozen=True),  # a product
        dt.hosts.Classifier(second, frozen=True),  # a matrix
    ):
        rows = dt.hosts.WithReference(host, reference)(x, torch.tensor([0, 1, 2, -100]))["class"]
        first.zero_grad()
        dt.KLRobustLoss(0.5, backend="reference")(rows, 0.5).sum().backward()
        assert bool(first.weight.grad.isfinite().all())
        assert bool(first.weight.grad.any())


def test_in_an_objective_and_its_evaluation():
    torch.manual_seed(0)
    x, label = torch.randn(6, 5), torch.tensor([0, 1, 2, 1, -100, -100])
    model, head = nn.Linear(5, 4), nn.Linear(4, 3)
    predictor = dt.TempNet(4, tau_min=0.1, tau_max=2.0, dropout=0.0)
    objective = dt.Objective(dt.hosts.Classifier(model, head), predictor, dt.KLRobustLoss(0.3))

    def trained(x, label):
        objective.zero_grad()
        output = objective(x, label)
        output.loss.backward()
        return output, [p.grad.clone() for p in (*head.parameters(), *predictor.parameters())]

    clean, wanted = trained(x[:4], label[:4])
    # The encoder's own gradient is beyond reach (0 times NaN, before the host gets to see it): it is frozen.
    model.requires_grad_(False)
    x[4:] = math.nan
    output, found = trained(x, label)
    torch.testing.assert_close(output.loss, clean.loss)
    for name, value in clean.metrics.items():
        torch.testing.assert_close(output.metrics[name], value)
    for ours, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, right)
    bounds = {"tau_min": 0.05, "tau_max": 5.0}
    reports = [
        dt.evaluation.amortisation_gap(objective, batches, **bounds)["class"]
        for batches in ([(x, label)], [(x[:4], label[:4])])
    ]
    assert reports[0].gap == reports[1].gap
    objective.commit()


# Impossible outcomes in the sigmoid loss --------------------------------------------------------------------


@pytest.mark.parametrize("impossible", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("smoothed", [False, True])
def test_the_sigmoid_loss_leaves_an_impossible_outcome_out(impossible, smoothed):
    torch.manual_seed(0)
    possible, target = torch.randn(3, 5), torch.tensor([0, 1, 2])

    def at(scores):
        spread = dt.functional.smoothed_distribution(target, 5, 0.1) if smoothed else None
        if smoothed:
            spread = torch.cat([spread, spread.new_zeros(3, scores.shape[1] - 5)], 1)
        tau = torch.full((3,), 0.01, requires_grad=True)
        scores = scores.clone().requires_grad_()
        loss = dt.SigmoidLoss()
        loss(dt.Rows(scores, target, target_distribution=spread), tau).sum().backward()
        return tau.grad, scores.grad[:, :5], loss.bias.grad

    masked = at(torch.cat([possible, torch.full((3, 1), impossible)], 1))
    for ours, right in zip(masked, at(possible), strict=True):
        torch.testing.assert_close(ours, right)


def test_an_impossible_target_is_an_infinite_loss():
    rows = dt.Rows(torch.tensor([[-math.inf, 1.0]]), torch.tensor([0]))
    assert dt.SigmoidLoss()(rows, 1.0).item() == math.inf


# Queues -----------------------------------------------------------------------------------------------------


def _queue(size: int = 6) -> dt.QueuedLoss:
    loss = dt.QueuedLoss(dt.KLRobustLoss(RHO), size=size, features=WIDTH, replay=2).double()
    host = pair_host()
    for step in range(2):
        loss(host(**pair_batch(4, step))["image"], 0.5)
        loss.queue.commit()
    return loss


def test_a_queue_takes_a_target_of_no_column_where_the_weight_is_zero():
    rows = pair_host()(**pair_batch(4, 7))["image"]
    tau = torch.full((4,), 0.5, dtype=torch.float64)
    found = {}
    for target in (3, -100):
        given = rows.target.clone()
        given[3] = target
        loss = _queue()
        some = dt.Rows(
            rows.scores, given, rows.features, rows.index, False, torch.tensor([1.0, 1.0, 1.0, 0.0])
        )
        found[target] = loss(some, tau)
        loss.queue.commit()
        whose = loss.queue.number.tolist()
        assert set(rows.index.tolist()[:3]) <= set(whose)
    torch.testing.assert_close(
        found[-100][:3], found[3][:3], rtol=0.3, atol=0.0
    )  # one outcome apart, at most
    assert found[-100][3] == found[3][3] == 0


def test_a_pair_that_is_alone_has_its_own_temperature():
    host, net = pair_host(), dt.TempNet(WIDTH, tau_min=0.05, tau_max=1.0, dropout=0.0).double()
    one = {name: x[:1] for name, x in pair_batch(4, 9).items()}
    rows = host(**one)["image"]
    torch.testing.assert_close(net.predict(rows), net(rows.features))
    assert not torch.equal(net.predict(rows), net(torch.zeros_like(rows.features)))
    table = dt.IndividualTemperature(40, tau_min=0.1, tau_max=1.0)
    with torch.no_grad():
        table.tau[rows.index] = 0.25
    torch.testing.assert_close(table.predict(rows).item(), 0.25)
    loss = _queue()
    values = loss(rows, net)
    assert values.item() == pytest.approx(loss(rows, net(rows.features)).item())
    assert values.item() != 0.0
    loss.queue.discard()
    # Its query is kept beside its key, for replay.
    loss(rows, 0.5)
    loss.queue.commit()
    at = loss.queue.number.tolist().index(int(rows.index))
    torch.testing.assert_close(loss.queue.queries[at], rows.features[0].detach())


def test_an_objective_learns_from_a_pair_that_is_alone():
    net = dt.TempNet(WIDTH, tau_min=0.05, tau_max=1.0, dropout=0.0).double()
    views = ("image", "text")
    losses = {v: dt.QueuedLoss(dt.KLRobustLoss(RHO), size=6, features=WIDTH).double() for v in views}
    objective = dt.Objective(pair_host(), net, dt.InfoNCELoss(), tau_loss=losses)
    for step in range(2):
        objective(**pair_batch(4, step)).loss.backward()
        objective.commit()
    objective.zero_grad()
    one = {name: x[:1] for name, x in pair_batch(4, 9).items()}
    output = objective(**one)
    output.loss.backward()
    for view in views:
        assert output.metrics[f"{view}/tau_loss"] == output.tau_values[view][0] != 0
    assert all(bool(p.grad.any()) for p in net.parameters() if p.grad is not None)
    objective.commit()


def test_rows_seen_in_inference_mode_train_afterwards():
    scores = torch.randn(3, 4, requires_grad=True)
    rows = dt.Rows(scores, torch.tensor([0, 1, 2]), weight=torch.tensor([1.0, 0.0, 2.0]))
    with torch.inference_mode():
        dt.KLRobustLoss(1.0)(rows, 0.5)
    dt.KLRobustLoss(1.0)(rows, 0.5).sum().backward()
    assert scores.grad.abs().sum(1).bool().tolist() == [True, False, True]
