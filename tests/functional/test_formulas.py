"""Leaves against their formulas, written out again, slowly and independently."""

import math

import pytest
import small
import torch
from torch import nn

import dro_temp as dt


def _randomised(module: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    return module.double().eval()


def _tau(net, v, y, low, high):
    a = (v / net.readout.log_sharpness.exp()).exp()
    a = a / a.sum()
    readout = ((a - 1 / len(v)) * y) @ net.readout.last.weight[0] + net.readout.last.bias[0]
    return low + (high - low) / (1 + (-readout).exp())


def test_tempnet_over_embeddings():
    net = _randomised(dt.TempNet(dt.predictors.PrototypeEncoder(5, prototypes=7), tau_min=0.1, tau_max=2.0))
    with torch.no_grad():
        net.readout.log_sharpness.fill_(-0.7)
    linear = net.encoder.transform[0]
    x = torch.randn(3, 5, dtype=torch.float64)
    for row, tau in zip(x, net(x), strict=True):
        hidden = 1 / (1 + (-(linear.weight @ row + linear.bias)).exp())
        v = torch.stack([hidden @ c / c.norm() for c in net.encoder.prototypes])
        torch.testing.assert_close(_tau(net, v, 1 / (1 + (-v).exp()), 0.1, 2.0), tau)


@pytest.mark.parametrize("centred", [False, True])
def test_tempnet_over_logits(centred):
    encoder = dt.predictors.LogitEncoder(6, width=4, centred=centred)
    net = _randomised(dt.TempNet(encoder, tau_min=0.1, tau_max=2.0))
    z = torch.randn(3, 6, dtype=torch.float64)
    for row, tau in zip(z, net(support=dt.Support(z)), strict=True):
        row = row - row.max() if centred else row
        row = row / row.norm()
        hidden = 1 / (1 + (-(encoder.first.weight @ row + encoder.first.bias)).exp())
        last = encoder.rest[2]
        v = last.weight @ hidden + last.bias
        torch.testing.assert_close(_tau(net, v, v, 0.1, 2.0), tau)


def test_cosine_gamma_everywhere():
    schedule = dt.estimators.CosineGamma(0.2, epochs=8, steps_per_epoch=3)
    for step in range(40):
        e = min(step // 3, 8)
        expected = 0.2 + 0.8 * (1 + math.cos(math.pi * e / 8)) / 2
        assert float(schedule(torch.tensor(step))) == pytest.approx(expected)


def test_learnable_temperature_returns_from_outside_its_bounds():
    predictor = dt.LearnableTemperature(0.5, tau_min=0.1, tau_max=1.0)
    with torch.no_grad():
        predictor.log_tau.fill_(1.0)  # a large step went past the bound
    tau = predictor(shape=torch.Size([1]))
    assert tau.item() == 1.0
    tau.backward()  # descent wants less
    assert predictor.log_tau.grad > 0
    table = dt.IndividualTemperature(2, tau_min=0.1, tau_max=1.0, update=None)
    with torch.no_grad():
        table.tau.fill_(3.0)
    table(index=torch.tensor([0])).backward()
    assert table.tau.grad.tolist() == [1.0, 0.0]


def test_weights_are_weights():
    scores, target = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0])

    class Host(dt.HostAdapter):
        views = ("class",)

        def rows(self):
            return {"class": dt.Rows(scores, target, weight=weight)}

    predictor = dt.OptimalTemperature(0.5, tau_min=0.01, tau_max=5.0)
    out = dt.Objective(Host(), predictor, dt.KLRobustLoss(0.5))()
    values = dt.KLRobustLoss(0.5)(dt.Rows(scores, target), out.tau["class"])
    torch.testing.assert_close(out.loss, (weight * values).sum() / weight.sum())
    counted = out.tau["class"][weight > 0]
    for name, expected in (
        ("mean", counted.mean()),
        ("std", counted.std(correction=0)),
        ("min", counted.min()),
        ("max", counted.max()),
    ):
        torch.testing.assert_close(out.metrics[f"class/tau_{name}"], expected)


def test_linear_scores_with_bias_and_transform():
    q, k, b = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    capped = dt.LinearScores(q, k, b, transform=lambda s: 30 * torch.tanh(s / 30)).dense()
    torch.testing.assert_close(capped, 30 * torch.tanh((q @ k.T + b) / 30))


def test_autocast_does_not_touch_similarities():
    images, texts = small.data(dtype=torch.float32)
    objective = small.objective("constant", estimator=dt.estimators.Exact).float()
    rows = {}
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
            unit = nn.functional.normalize(x, dim=1)
            rows[enabled] = (
                dt.LinearScores(unit, unit).dense(),
                dt.hosts.TwoTower(nn.Identity(), nn.Identity()).encode_image(x),
            )
    for exact, cast in zip(rows[False], rows[True], strict=True):
        assert torch.equal(exact, cast)
    assert objective(images, texts).loss.isfinite()


def test_no_gradient_reaches_the_host_through_the_logits_that_tempnet_reads():
    torch.manual_seed(0)
    model = nn.Linear(6, 5).double()
    net = dt.TempNet.for_logits(5, tau_min=0.1, tau_max=2.0, dropout=0.0).double()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(5, (8,))
    dt.Objective(dt.hosts.Classifier(model), net, dt.KLRobustLoss(0.5))(x, y).loss.backward()
    ours = model.weight.grad.clone()
    model.zero_grad()
    tau = net(support=dt.Support(model(x))).detach()
    dt.KLRobustLoss(0.5)(dt.Rows(model(x), y), tau).mean().backward()
    torch.testing.assert_close(ours, model.weight.grad)


def test_a_held_estimate_gets_no_gradient():
    log_u = torch.zeros(3, requires_grad=True)
    log_g = torch.ones(3, requires_grad=True)
    dt.functional.dual_value(log_g, torch.ones(3), rho=0.1, log_u=log_u).sum().backward()
    assert log_u.grad is None


def test_the_population_of_pairs_is_the_data_set_without_the_pair_itself():
    assert dt.LogMovingAverage(24).population(5) == 23
    assert dt.LogMovingAverage(4).population(5) == 5
    objective = small.objective(rho=math.log(23) + 1e-9)
    images, texts = small.data()
    with pytest.raises(ValueError, match="m=23"):
        objective(images, texts, index=torch.arange(small.N))


def test_impossible_outcomes_have_probability_zero_and_finite_gradients():
    """Masked classes or tokens, as -inf: outcomes of the support that cannot happen."""
    scores = torch.tensor([[1.0, -torch.inf, 0.5, 0.0]], requires_grad=True)
    for loss in (dt.KLRobustLoss(0.3), dt.InfoNCELoss()):
        tau = torch.tensor([0.7], requires_grad=True)
        scores.grad = None
        value = loss(dt.Rows(scores, torch.tensor([2])), tau)
        value.sum().backward()
        assert bool(scores.grad.isfinite().all())
        assert bool(tau.grad.isfinite().all())
        assert scores.grad[0, 1] == 0
    low = torch.tensor([[1.0, -1e6, 0.5, 0.0]])
    torch.testing.assert_close(value, loss(dt.Rows(low, torch.tensor([2])), tau))


def test_rows_that_do_not_count_may_hold_anything():
    torch.manual_seed(0)
    net = dt.TempNet(4, tau_min=0.1, tau_max=1.0)
    scores, features = torch.randn(3, 6), torch.randn(3, 4)
    scores[1], features[1] = torch.nan, torch.nan
    rows = dt.Rows(
        scores,
        torch.tensor([0, -100, 2]),
        features,
        torch.tensor([0, -1, 1]),
        weight=torch.tensor([1.0, 0.0, 1.0]),
    )
    tau = net.predict(rows)
    assert bool(tau.isfinite().all())
    loss = dt.KLRobustLoss(0.5, estimator=dt.LogMovingAverage(2))
    bad_tau = torch.tensor([0.5, torch.nan, 0.5], requires_grad=True)
    loss(rows, bad_tau).sum().backward()
    assert bad_tau.grad[1] == 0
    loss(rows, tau).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    loss.estimator.commit()
    assert bool(loss.estimator.log_u.isfinite().all())
