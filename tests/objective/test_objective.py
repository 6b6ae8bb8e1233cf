"""Objective: composition, reduction, groups, output, hosts inside it."""

import pytest
import small
import torch
from torch import nn

import dro_temp as dt


def test_output_says_what_one_would_log():
    images, texts = small.data()
    out = small.objective()(images, texts, index=torch.arange(small.N))
    assert out.loss.shape == ()
    assert {v.shape for v in out.values.values()} == {(small.N,)}
    assert {t.shape for t in out.tau.values()} == {(small.N,)}
    assert not out.tau["image"].requires_grad
    expected = {
        f"{v}/{m}" for v in ("image", "text") for m in ("loss", "tau_mean", "tau_std", "tau_min", "tau_max")
    }
    assert set(out.metrics) == expected | {"loss"}
    assert out.metrics["loss"] == out.loss.detach()
    assert not any(value.requires_grad for value in out.metrics.values())
    assert out.metrics["image/tau_mean"].item() == pytest.approx(out.tau["image"].mean().item())
    mean = (out.values["image"].mean() + out.values["text"].mean()) / 2
    torch.testing.assert_close(out.loss, mean)


def test_infonce_with_a_learnable_temperature_is_clip():
    """The same loss and gradients as CLIP's own formula with logit_scale = -log tau."""
    images, texts = small.data()
    host = small.two_tower()
    predictor = dt.LearnableTemperature(0.07)
    objective = dt.Objective(host, predictor, dt.InfoNCELoss()).double()
    objective(images, texts).loss.backward()
    ours = [p.grad.clone() for p in objective.parameters()]

    objective.zero_grad()
    x, y = host.encode_image(images), host.encode_text(texts)
    logits = x @ y.T * (-predictor.log_tau).exp()
    label = torch.arange(small.N)
    clip = (nn.functional.cross_entropy(logits, label) + nn.functional.cross_entropy(logits.T, label)) / 2
    clip.backward()
    for a, p in zip(ours, objective.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-10, atol=1e-13)


def test_rgcl_g_gradient_counts_the_worst_case_once():
    """dF/dtau of one global temperature: rho + mean log u - E_w[h / tau]. (A released peer counts E_w twice.)"""
    images, texts = small.data()
    objective = small.objective("learnable")
    index = torch.arange(small.N)
    objective(images, texts, index=index).loss.backward()
    expected = 0.0
    tau = torch.tensor(0.2, dtype=torch.float64)
    for r in objective.host(images, texts).values():
        t = tau.expand(small.N)
        log_g = dt.functional.log_mean_exp(r.margins / tau, r.mask)
        w = dt.functional.kl_weights(r.margins, t, r.mask)
        expected += (0.5 + log_g - (w * r.margins / tau).sum(1)).mean() / 2
    for predictor in objective.predictors.values():
        # d/dlog tau = tau d/dtau; each view has its own parameter here
        assert predictor.log_tau.grad is not None
    total = sum(p.log_tau.grad.squeeze() for p in objective.predictors.values()) / tau
    torch.testing.assert_close(total, expected.detach(), rtol=1e-6, atol=1e-9)


def test_no_gradient_reaches_the_host_through_the_predictor():
    images, texts = small.data()
    host = small.two_tower()
    tempnet = dt.TempNet(4, tau_min=0.05, tau_max=1.0, dropout=0.0)
    frozen_tau = dt.Objective(host, tempnet, dt.KLRobustLoss(0.5)).double()
    frozen_tau(images, texts).loss.backward()
    with_net = host.image_encoder.weight.grad.clone()
    host.zero_grad()
    rows = host(images, texts)
    loss = sum(dt.KLRobustLoss(0.5)(r, tempnet.predict(r).detach()).mean() for r in rows.values()) / 2
    loss.backward()
    torch.testing.assert_close(host.image_encoder.weight.grad, with_net)


@pytest.mark.parametrize("head", [False, True])
def test_tempnet_alone_on_a_frozen_host(head):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    model = (backbone, nn.Linear(8, 10)) if head else (nn.Sequential(*backbone, nn.Linear(8, 10)),)
    host = dt.hosts.Classifier(*model, frozen=True)
    tempnet = (
        dt.TempNet(8, tau_min=0.1, tau_max=4.0)
        if head
        else dt.TempNet.for_logits(10, tau_min=0.1, tau_max=4.0)
    )
    objective = dt.Objective(host, tempnet, dt.KLRobustLoss(rho=1.0))
    groups = objective.param_groups(lr=1e-2)
    assert [g["name"] for g in groups] == ["temperature"]
    opt = dt.CompositionalOptimizer(torch.optim.AdamW(groups, weight_decay=0.1), objective)
    before = {k: v.clone() for k, v in host.state_dict().items()}
    x, y = torch.randn(64, 6), torch.randint(10, (64,))
    objective.train()
    first = None
    for _ in range(60):
        out = objective(x, y)
        first = first if first is not None else out.loss.item()
        out.loss.backward()
        opt.step()
        opt.zero_grad()
    assert out.loss.item() < first
    for name, value in host.state_dict().items():
        assert torch.equal(value, before[name]), name  # batch norm statistics included


def test_the_optimum_is_never_beaten_by_another_predictor():
    torch.manual_seed(0)
    host = dt.hosts.Classifier(nn.Linear(6, 10))
    x, y = torch.randn(32, 6), torch.randint(10, (32,))
    loss = dt.KLRobustLoss(rho=1.0)
    best = dt.Objective(host, dt.OptimalTemperature(1.0, tau_min=0.1, tau_max=4.0), loss)(x, y).values[
        "class"
    ]
    for predictor in (
        dt.ConstantTemperature(0.5),
        dt.LearnableTemperature(1.0, tau_min=0.1, tau_max=4.0),
        dt.TempNet.for_logits(10, tau_min=0.1, tau_max=4.0),
    ):
        other = dt.Objective(host, predictor, loss).eval()(x, y).values["class"]
        assert bool((best <= other + 1e-5).all())


def test_individual_temperatures_follow_isogclr_step_by_step():
    """m <- (1-b) m + b clip(G), tau <- clip(tau - lr m), whatever scale the loss is given."""
    images, texts = small.data()
    objective = small.objective("individual", gamma=0.5)
    opt = small.optimizer(objective)
    predictor = objective.predictors["image"]
    tau, m = predictor.tau.clone(), torch.zeros(small.N, dtype=torch.float64)
    for index in small.batches(4):
        rows = objective.host(images[index], texts[index], index=index)["image"]
        t = tau[index].clone().requires_grad_()
        held = objective.losses["image"].estimator.log_u[index]
        log_g = dt.functional.log_mean_exp(rows.margins / t[:, None], rows.mask)
        new = dt.functional.log_average(held, log_g.detach(), 0.5)
        (g,) = torch.autograd.grad(dt.functional.dual_value(log_g, t, rho=0.5, log_u=new).sum(), t)
        m[index] = 0.1 * m[index] + 0.9 * g.clamp(-5, 5)
        tau[index] = (tau[index] - 0.05 * m[index]).clamp(0.05, 1.0)

        (1000 * objective(images[index], texts[index], index=index).loss).backward()
        opt.step()
        opt.zero_grad()
        torch.testing.assert_close(predictor.tau, tau, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(predictor.momentum, m, rtol=1e-10, atol=1e-12)


def test_rows_of_weight_zero_do_not_change_the_mean():
    torch.manual_seed(0)
    objective = dt.Objective(
        dt.hosts.Classifier(nn.Linear(6, 5)), dt.ConstantTemperature(1.0), dt.KLRobustLoss(0.5)
    )
    x, y = torch.randn(6, 6), torch.randint(5, (6,))
    padded_x, padded_y = torch.cat([x, torch.randn(3, 6)]), torch.cat([y, torch.full((3,), -100)])
    torch.testing.assert_close(objective(padded_x, padded_y).loss, objective(x, y).loss)
    nothing = objective(x, torch.full((6,), -100)).loss
    assert nothing.item() == 0.0
    nothing.backward()
    assert all(bool((p.grad == 0).all()) for p in objective.parameters())


def test_prototypes_start_from_the_other_side():
    tempnet = dt.TempNet(4, tau_min=0.05, tau_max=1.0, prototypes=6)
    other = torch.randn(10, 4)
    tempnet.encoder.set_prototypes(other)
    torch.testing.assert_close(tempnet.encoder.prototypes.detach(), nn.functional.normalize(other[:6], dim=1))
    tempnet.encoder.set_prototypes(other[:2])
    assert torch.equal(tempnet.encoder.prototypes[0], tempnet.encoder.prototypes[4])


def test_an_objective_starts_the_prototypes_of_each_view_from_the_other():
    images, texts = small.data()
    objective = small.objective("tempnet")
    before = objective.host.state_dict()
    objective.start_prototypes(images, texts, index=torch.arange(small.N))
    for view, other in (
        ("image", objective.host.encode_text(texts)),
        ("text", objective.host.encode_image(images)),
    ):
        torch.testing.assert_close(objective.predictors[view].encoder.prototypes.detach(), other[:6].detach())
    assert not objective.pending
    for name, value in objective.host.state_dict().items():
        assert torch.equal(value, before[name])
    small.objective("learnable").start_prototypes(images, texts)  # nothing to start
    with pytest.raises(ValueError, match=r"expected.*two views.*received.*class"):
        dt.Objective(
            dt.hosts.Classifier(nn.Linear(6, 5)), dt.ConstantTemperature(1.0), dt.KLRobustLoss(0.5)
        ).start_prototypes(torch.zeros(2, 6), torch.zeros(2, dtype=torch.long))


def test_tempnet_starts_as_the_paper_says():
    for tempnet in (
        dt.TempNet(8, tau_min=0.1, tau_max=2.0),
        dt.TempNet.for_logits(12, tau_min=0.1, tau_max=2.0),
    ):
        assert bool((tempnet.readout.last.weight == 1).all())
        assert bool((tempnet.readout.last.bias == 0).all())
    assert dt.TempNet(8, tau_min=0.1, tau_max=2.0).readout.log_sharpness.exp().item() == pytest.approx(0.01)
    assert dt.TempNet.for_logits(12, tau_min=0.1, tau_max=2.0).readout.log_sharpness.item() == 0.0
    started = dt.TempNet(8, tau_min=0.1, tau_max=2.0, tau_init=0.3)
    with torch.no_grad():
        started.readout.last.weight.zero_()
    assert started(torch.randn(8)).item() == pytest.approx(0.3)


def test_parameter_groups_take_each_parameter_once():
    objective = small.objective("tempnet")
    groups = objective.param_groups(lr=1.0, tau_lr=2.0, weight_decay=0.3)
    counted = [id(p) for g in groups for p in g["params"]]
    assert len(counted) == len(set(counted)) == len(list(objective.parameters()))
    shared = dt.Objective(small.two_tower(), dt.TempNet(4, tau_min=0.1, tau_max=1.0), dt.KLRobustLoss(0.5))
    counted = [id(p) for g in shared.param_groups(lr=1.0) for p in g["params"]]
    assert len(counted) == len(set(counted)) == len(list(shared.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_scores_and_memory_in_float32(dtype):
    images, texts = small.data(dtype=torch.float32)
    objective = small.objective().float()
    with torch.autocast("cpu", dtype=dtype):
        out = objective(images, texts, index=torch.arange(small.N))
    out.loss.backward()
    objective.commit()
    assert out.values["image"].dtype == torch.float32
    assert out.tau["image"].dtype == torch.float32
    assert objective.losses["image"].estimator.log_u.dtype == torch.float32
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters())


def test_a_model_in_bfloat16_trains_with_its_memory_in_float32():
    images, texts = small.data(dtype=torch.float32)
    objective = small.objective().float().bfloat16()
    opt = small.optimizer(objective)
    for index in small.batches(3):
        out = objective(images[index].bfloat16(), texts[index].bfloat16(), index=index)
        out.loss.backward()
        opt.step()
        opt.zero_grad()
    assert out.loss.dtype == torch.float32
    assert objective.losses["image"].estimator.log_u.dtype == torch.float32


def test_bfloat16_rows_are_no_worse_than_eager_bfloat16():
    """Against float64 truth, at the temperature where it matters."""
    g = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(64, 32, generator=g, dtype=torch.float64), dim=1)
    tau, target = torch.full((64,), 0.005, dtype=torch.float64), torch.arange(64)
    other = nn.functional.normalize(
        features + 0.1 * torch.randn(64, 32, generator=g, dtype=torch.float64), dim=1
    )

    def value(x, y, scores=None):
        scores = dt.LinearScores(x, y) if scores is None else scores
        return dt.KLRobustLoss(1.0)(dt.Rows(scores, target, target_in_support=False), tau).double()

    truth = value(features, other)
    low = (features.bfloat16(), other.bfloat16())
    ours = (value(*low) - truth).abs().max()
    eager = (value(*low, scores=low[0] @ low[1].T) - truth).abs().max()
    assert ours <= eager
