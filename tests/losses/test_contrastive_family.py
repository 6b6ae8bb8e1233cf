"""Every recipe against its formula written out pair by pair: value and gradients over three steps."""

import math

import pytest
import slow_contrastive as slow
import small
import torch
from torch import nn

import dro_temp as dt

N, D = 12, 5
BATCHES = ([0, 1, 2, 3, 4], [2, 9, 0, 7, 4], [4, 2, 11, 0, 3])  # samples come back, so that memory matters
EPOCHS = {"epochs": 4, "steps_per_epoch": 1}


def _host(width: int = 4, seed: int = 0, **options) -> dt.hosts.TwoTower:
    torch.manual_seed(seed)
    return dt.hosts.TwoTower(nn.Linear(D, width), nn.Linear(D, width), **options)


def _cosine(step: int) -> float:
    """From 1 to 0.2 over half of four epochs."""
    return 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * min(step, 2) / 2))


def _constant(step: int) -> float:
    return 0.8


def _steps(objective):
    """Three steps of the objective; between forward and step the caller looks at gradients."""
    images, texts = small.data(N)
    objective.double()
    for module in objective.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    groups = objective.param_groups(lr=0.05, tau_lr=0.02)
    opt = dt.CompositionalOptimizer(torch.optim.SGD(groups), objective)
    for batch in BATCHES:
        index = torch.tensor(batch)
        opt.zero_grad()
        output = objective(images[index], texts[index], index=index)
        output.loss.backward()
        yield images[index], texts[index], batch, output
        opt.step()


def _assert_gradients(surrogate, objective) -> None:
    trained = [p for p in objective.parameters() if p.requires_grad]
    expected = torch.autograd.grad(surrogate, trained, allow_unused=True)
    for want, p in zip(expected, trained, strict=True):
        if want is None:
            assert p.grad is None or bool((p.grad == 0).all())
            continue
        assert bool((want != 0).any())
        torch.testing.assert_close(p.grad, want, rtol=1e-9, atol=1e-11)


def _vectors(host, images, texts):
    return slow.encode(host.image_encoder, images), slow.encode(host.text_encoder, texts)


# Losses of the batch ---------------------------------------------------------------------------------------


def _infonce(objective, x, y, tau):
    s = slow.table(x, y)
    return (slow.infonce(s, tau) + slow.infonce(slow.transposed(s), tau)) / 2


def _cyclip(objective, x, y, tau):
    return _infonce(objective, x, y, tau) + slow.cyclic(x, y, 0.25, 0.25)


def _siglip(objective, x, y, tau):
    return slow.siglip(slow.table(x, y), tau, objective.losses["image"].bias.squeeze())


@pytest.mark.parametrize(
    ("recipe", "formula"),
    [(dt.recipes.infonce, _infonce), (dt.recipes.cyclip, _cyclip), (dt.recipes.siglip, _siglip)],
    ids=["infonce", "cyclip", "siglip"],
)
def test_losses_of_the_batch(recipe, formula):
    objective = recipe(_host())
    for images, texts, _, output in _steps(objective):
        x, y = _vectors(objective.host, images, texts)
        expected = formula(objective, x, y, objective.predictors["image"].log_tau.squeeze().exp())
        torch.testing.assert_close(output.loss, expected, rtol=1e-11, atol=1e-12)
        _assert_gradients(expected, objective)


def test_siglip_is_one_sum_over_all_pairs_from_either_side():
    images, texts = small.data(6)
    objective = dt.recipes.siglip(_host()).double()
    values = objective(images, texts).values
    torch.testing.assert_close(values["image"].mean(), values["text"].mean(), rtol=1e-12, atol=0)


# Losses of the data set ------------------------------------------------------------------------------------


def _global_objective(name: str):
    """The objective, and (scaled, rho, rule) of its formula."""
    average = slow.moving_average
    host = _host()
    return {
        "sogclr": lambda: (dt.recipes.sogclr(host, N, tau=0.2), True, 0.0, average(_constant)),
        "isogclr": lambda: (
            dt.recipes.isogclr(host, N, rho=0.7, tau_min=0.05, tau_max=1.0, tau_step=0.05),
            True,
            0.7,
            average(_constant),
        ),
        "tempnet": lambda: (
            dt.recipes.tempnet(host, N, 4, rho=0.7, tau_min=0.05, tau_max=1.0),
            True,
            0.7,
            average(_constant),
        ),
        "scent": lambda: (dt.recipes.scent(host, N, tau=0.2, alpha=1.0), False, 0.0, slow.scent(1.0)),
        "fastclip_v0": lambda: (
            dt.recipes.fastclip_v0(host, N, tau_init=0.2, **EPOCHS),
            False,
            0.0,
            average(_cosine),
        ),
        "fastclip_v1": lambda: (
            dt.recipes.fastclip_v1(host, N, tau=0.2, **EPOCHS),
            True,
            0.0,
            average(_cosine),
        ),
        "fastclip_v2": lambda: (
            dt.recipes.fastclip_v2(host, N, rho=0.7, tau_min=0.05, tau_init=0.2, tau_step=0.05, **EPOCHS),
            True,
            0.7,
            average(_cosine),
        ),
        "fastclip_v3": lambda: (
            dt.recipes.fastclip_v3(host, N, rho=0.7, tau_init=0.2, **EPOCHS),
            True,
            0.7,
            average(_cosine),
        ),
        "drrho": lambda: (
            dt.recipes.drrho(host, _host(3, seed=7, frozen=True), N, tau=0.2),
            True,
            0.0,
            average(_constant),
        ),
    }[name]()


class _Individual:
    """iSogCLR's table of one view."""

    def __init__(self, start: float) -> None:
        self.tau = dict.fromkeys(range(N), start)
        self.m = dict.fromkeys(range(N), 0.0)

    @classmethod
    def like(cls, predictor):
        individual = isinstance(predictor, dt.IndividualTemperature)
        return cls(predictor.tau[0].item()) if individual else None

    def follow(self, gradients: dict[int, float], batch: list[int]) -> None:
        for i in batch:
            self.m[i] = 0.1 * self.m[i] + 0.9 * max(-5.0, min(5.0, gradients[i]))
            self.tau[i] = max(0.05, min(1.0, self.tau[i] - 0.05 * self.m[i]))


def _taus(predictor, features, batch, own):
    if isinstance(predictor, dt.ConstantTemperature):
        return [torch.tensor(0.2, dtype=torch.float64)] * len(batch)
    if isinstance(predictor, dt.LearnableTemperature):
        return [predictor.log_tau.squeeze().exp()] * len(batch)
    if own is not None:
        return [torch.tensor(own.tau[i], dtype=torch.float64) for i in batch]
    return list(predictor(torch.tensor([[v.item() for v in row] for row in features], dtype=torch.float64)))


@pytest.mark.parametrize(
    "name",
    [
        "sogclr",
        "isogclr",
        "tempnet",
        "scent",
        "fastclip_v0",
        "fastclip_v1",
        "fastclip_v2",
        "fastclip_v3",
        "drrho",
    ],
)
def test_losses_of_the_data_set(name):
    objective, scaled, rho, rule = _global_objective(name)
    memory = {view: slow.Memory(rule, scaled, rho) for view in ("image", "text")}
    objective.double()
    own = {view: _Individual.like(objective.predictors[view]) for view in memory}
    for images, texts, batch, output in _steps(objective):
        host = objective.host.host if name == "drrho" else objective.host
        x, y = _vectors(host, images, texts)
        s = slow.table(x, y)
        if name == "drrho":
            reference = slow.table(*_vectors(objective.host.reference, images, texts))
            s = [
                [a - b.detach() for a, b in zip(p, q, strict=True)] for p, q in zip(s, reference, strict=True)
            ]
        value, surrogate = 0.0, 0.0
        for view, scores, features in (("image", s, x), ("text", slow.transposed(s), y)):
            tau = _taus(objective.predictors[view], features, batch, own[view])
            torch.testing.assert_close(output.tau[view], torch.stack(tau).detach(), rtol=1e-11, atol=0)
            part, gradient = memory[view].loss(scores, tau, batch)
            value, surrogate = value + part / 2, surrogate + gradient / 2
            if own[view] is not None:
                own[view].follow(memory[view].gradients, batch)
        assert output.loss.item() == pytest.approx(value, rel=1e-11)
        _assert_gradients(surrogate, objective)
    for view, held in memory.items():
        log_u = objective.losses[view].estimator.log_u
        expected = torch.full((N,), -math.inf, dtype=torch.float64)
        for i, u in held.u.items():
            expected[i] = math.log(u)
        torch.testing.assert_close(log_u, expected, rtol=1e-10, atol=1e-12)
        if own[view] is not None:
            tau = torch.tensor([own[view].tau[i] for i in range(N)], dtype=torch.float64)
            torch.testing.assert_close(objective.predictors[view].tau, tau, rtol=1e-11, atol=0)
            assert tau[10] == objective.predictors[view].tau[10]  # never seen
            assert bool((tau != tau[10]).any())


# What recipes are ------------------------------------------------------------------------------------------


def test_one_temperature_is_shared_and_memories_are_not():
    host = _host()
    for objective in (
        dt.recipes.infonce(host),
        dt.recipes.siglip(host),
        dt.recipes.fastclip_v0(host, N, **EPOCHS),
        dt.recipes.fastclip_v3(host, N, rho=1.0, **EPOCHS),
    ):
        assert objective.predictors["image"] is objective.predictors["text"]
    for objective in (
        dt.recipes.sogclr(host, N),
        dt.recipes.scent(host, N),
        dt.recipes.tempnet(host, N, 4, rho=1.0),
    ):
        assert objective.losses["image"].estimator is not objective.losses["text"].estimator
        assert [m.num_samples for m in objective.memory_modules()] == [N, N]
    assert len(dt.recipes.isogclr(host, N, rho=1.0).memory_modules()) == 4


def test_gamma_of_fastclip_descends_over_half_of_the_training():
    gamma = dt.recipes.fastclip_v1(_host(), N, epochs=10, steps_per_epoch=3).losses["image"].estimator.gamma
    assert [round(float(gamma(torch.tensor(k))), 3) for k in (0, 2, 3, 15, 29)] == [1.0, 1.0, 0.924, 0.2, 0.2]


def test_a_radius_too_large_for_the_data_set_is_refused():
    images, texts = small.data(4, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"expected rho < log m, received rho=7.0 with m=11"):
        dt.recipes.isogclr(_host(), N)(images, texts, index=torch.arange(4))
