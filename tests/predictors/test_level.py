"""Temperatures about a level that is kept, the partner's temperatures, and a likelihood that has a scale of its own."""

import copy

import pytest
import small
import torch
from processes import in_processes
from torch.export import Dim, export

import dro_temp as dt
from dro_temp.losses import ScaledLikelihoodLoss
from dro_temp.predictors import HiddenEncoder, LevelTemperature, ResidualReadout

TAU, POWER = 0.14, 0.7


def _level(**options) -> LevelTemperature:
    network = dt.TempNet(HiddenEncoder(4), tau_min=0.01, tau_max=1.0, readout=ResidualReadout)
    torch.nn.init.normal_(network.readout.last.weight, std=0.1)
    options = {"tau": TAU, "power": POWER, "tau_min": 0.01, "tau_max": 1.0} | options
    return LevelTemperature(network, **options)


def _objective(**options) -> dt.Objective:
    """A network taught by likelihood, an entropic host, the level held, one temperature for a pair."""
    host = small.two_tower()
    torch.manual_seed(1)
    losses = {view: dt.losses.EntropicRiskLoss(estimator=dt.LogMovingAverage(small.N)) for view in host.views}
    likelihood = ScaledLikelihoodLoss(dt.LearnableTemperature(0.1), tau=TAU, power=POWER)
    objective = dt.Objective(
        host, _level(**options), losses, tau_loss=likelihood, tau_from={"text": "image"}, check_finite=False
    )
    return objective.double()


def _trained(objective: dt.Objective, steps: int = 80) -> list[float]:
    """Geometric mean of the temperatures of each step."""
    images, texts = small.data()
    optimizer = small.optimizer(objective)
    means = []
    for index in small.batches(steps, size=8):
        output = objective(images[index], texts[index], index=index)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        means.append(float(output.tau["image"].log().mean().exp()))
    return means


def test_the_geometric_mean_stays_though_the_loss_moves_it():
    held = _trained(_objective())
    host = small.two_tower()
    losses = {view: dt.losses.EntropicRiskLoss(estimator=dt.LogMovingAverage(small.N)) for view in host.views}
    torch.manual_seed(1)
    free = dt.TempNet(HiddenEncoder(4), tau_min=0.01, tau_max=1.0, tau_init=TAU, readout=ResidualReadout)
    plain = dt.Objective(host, free, losses, tau_loss=dt.LikelihoodLoss()).double()
    free_means = _trained(plain)
    assert torch.tensor(held[40:]).log().mean().exp() == pytest.approx(TAU, rel=0.1)
    assert abs(torch.tensor(free_means[-20:]).div(TAU).log().mean()) > 0.5


def test_the_level_holds_over_the_data_in_evaluation_and_after_a_resume():
    objective = _objective()
    _trained(objective)
    images, texts = small.data()
    index = torch.arange(small.N)
    tau = objective.eval()(images, texts, index=index).tau["image"]
    assert tau.log().mean().exp() == pytest.approx(TAU, rel=0.15)
    resumed = _objective().eval()
    resumed.load_state_dict(objective.state_dict())
    assert torch.equal(resumed(images, texts, index=index).tau["image"], tau)


def test_forward_reads_and_step_writes():
    objective, (images, texts) = _objective(), small.data()
    level, index = objective.predictors["image"].level, torch.arange(small.N)
    output = objective(images, texts, index=index)
    objective.eval()(images, texts, index=index)
    with torch.no_grad():
        objective.train()(images, texts, index=index)
    assert level.mean == 0
    objective.discard()
    output = objective(images, texts, index=index)
    output.loss.backward()
    objective.commit()
    # The first batch counts fully, as far as its temperatures say.
    expected = (output.tau["image"] / TAU).log().mean() / POWER
    torch.testing.assert_close(level.mean[0], expected)
    assert level.steps == 1


def test_the_first_batch_with_a_row_that_counts_does_so_fully():
    predictor, features = _level(gamma=0.1), torch.randn(16, 4)
    for counts in (torch.zeros(16, dtype=torch.bool), None):
        predictor.observe_tau(predictor(features), counts)
        predictor.level.commit()
    assert predictor(features).log().mean().exp().item() == pytest.approx(TAU, rel=1e-4)


def test_parts_of_a_window_move_the_level_once():
    images, texts = small.data()
    levels = []
    for parts in ([slice(0, 24)], [slice(0, 4), slice(4, 24)]):
        objective = _objective()
        for part in parts:
            index = torch.arange(small.N)[part]
            objective(images[part], texts[part], index=index).loss.backward()
        objective.commit()
        levels.append(objective.predictors["image"].level.mean.clone())
    torch.testing.assert_close(levels[0], levels[1])


def test_text_rows_take_their_images_temperatures_which_learn_from_both():
    objective, (images, texts) = _objective(), small.data()
    output = objective(images, texts, index=torch.arange(small.N))
    assert torch.equal(output.tau["image"], output.tau["text"])
    rows = objective.host(images, texts, index=torch.arange(small.N))
    torch.testing.assert_close(output.tau["text"], objective.predictors["image"].predict(rows["image"]))
    network = objective.predictors["image"].predictor
    weight = network.readout.last.weight
    both = torch.autograd.grad(output.loss, weight, retain_graph=True)[0]
    views = [
        torch.autograd.grad(output.tau_values[view].mean() / 2, weight, retain_graph=True)[0]
        for view in output.tau
    ]
    assert all(bool(view.any()) for view in views)
    torch.testing.assert_close(both, views[0] + views[1])


def test_prototypes_of_a_taken_predictor_start_from_the_views_that_it_does_not_read():
    host, images_texts = small.two_tower().float(), small.data(dtype=torch.float32)
    objective = dt.Objective(host, _tempnets(host), dt.InfoNCELoss(), tau_from={"text": "image"})
    reference = dt.TempNet(4, tau_min=0.05, tau_max=1.0, prototypes=6)
    torch.manual_seed(5)
    reference.start_prototypes(host(*images_texts)["text"].features)
    torch.manual_seed(5)
    objective.start_prototypes(*images_texts)
    assert torch.equal(objective.predictors["image"].encoder.prototypes, reference.encoder.prototypes)


def _tempnets(host) -> dict[str, dt.TempNet]:
    return {view: dt.TempNet(4, tau_min=0.05, tau_max=1.0, prototypes=6) for view in host.views}


def test_a_state_of_other_sources_is_refused():
    def made(**options):
        host = small.two_tower()
        return dt.Objective(host, _tempnets(host), dt.InfoNCELoss(), **options)

    saved, objective = made().state_dict(), made(tau_from={"text": "image"})
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"expected a state saved with tau_from.*received.*Load it"):
        objective.load_state_dict(saved)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    of_its_own = made(tau_from={"text": "image"})
    of_its_own.load_state_dict(copy.deepcopy(before))
    assert all(torch.equal(value, before[name]) for name, value in of_its_own.state_dict().items())


def test_taken_temperatures_without_a_tau_loss():
    images, texts = small.data()
    host = small.two_tower()
    predictor = {"image": dt.TempNet(4, tau_min=0.05, tau_max=1.0), "text": dt.ConstantTemperature(0.3)}
    objective = (
        dt.Objective(host, predictor, dt.KLRobustLoss(0.5), tau_from={"text": "image"}).double().eval()
    )
    output = objective(images, texts)
    assert torch.equal(output.tau["image"], output.tau["text"])
    by_hand = dt.KLRobustLoss(0.5)(host(images, texts)["text"], output.tau["image"])
    torch.testing.assert_close(output.values["text"], by_hand)
    gaps = dt.evaluation.amortisation_gap(objective, [(images, texts)])
    assert gaps["text"].tau.mean == pytest.approx(gaps["image"].tau.mean)


def test_the_scale_is_trained_and_the_host_is_not_by_it():
    objective = _objective()
    loss = objective.tau_losses["image"]
    names = {g["name"]: [id(p) for p in g["params"]] for g in objective.param_groups(lr=0.1)}
    assert id(loss.scale.log_tau) in names["loss"]
    before = loss.scale.log_tau.clone()
    host = objective.host(*small.data(), index=torch.arange(small.N))["image"]
    assert host.scores.queries.requires_grad
    _trained(objective, 20)
    assert bool(loss.scale.log_tau != before)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_streamed_and_from_the_matrix(power):
    torch.manual_seed(0)
    queries, keys = torch.randn(20, 6), torch.randn(30, 6)
    tau = (0.1 + torch.rand(20)).requires_grad_()
    rows = dt.Rows(dt.LinearScores(queries, keys), torch.randint(30, (20,)))
    results = []
    for backend in ("reference", "torch"):
        loss = ScaledLikelihoodLoss(dt.LearnableTemperature(0.3), tau=0.2, power=power, backend=backend)
        output = loss.evaluate(rows, tau, statistics=("kl", "max"))
        gradients = torch.autograd.grad(output.values.mean(), (tau, loss.scale.log_tau))
        results.append((output.values, output.tau, output.statistics, *gradients))
    assert torch.equal(results[1][1], tau)
    torch.testing.assert_close(results[0], results[1])


def test_a_predictor_of_statistics_inside_a_scaled_loss():
    torch.manual_seed(0)
    rows = dt.Rows(dt.LinearScores(torch.randn(20, 6), torch.randn(30, 6)), torch.randint(30, (20,)))
    network = dt.TempNet(dt.predictors.StatisticsEncoder(), tau_min=0.1, tau_max=2.0).eval()
    values = [
        ScaledLikelihoodLoss(dt.ConstantTemperature(0.3), tau=0.2, backend=backend)(rows, network)
        for backend in ("reference", "torch")
    ]
    torch.testing.assert_close(values[0], values[1])


def test_it_is_exported_with_its_level():
    objective = _objective()
    _trained(objective, 5)
    predictor = copy.deepcopy(objective.predictors["image"]).float().eval()
    program = export(predictor, (torch.randn(4, 4),), dynamic_shapes=({0: Dim("rows", max=4096)},))
    features = torch.randn(9, 4)
    torch.testing.assert_close(program.module()(features), predictor(features))
    assert predictor.level.mean != 0


@pytest.mark.slow
def test_a_compiled_step_moves_the_level(no_shape_checks):
    objective, (images, texts) = _objective(), small.data()
    compiled = torch.compile(objective, backend="eager", fullgraph=True)
    compiled(images, texts, index=torch.arange(small.N)).loss.backward()
    objective.commit()
    assert objective.predictors["image"].level.steps == 1
    torch.compiler.reset()


def test_it_serves():
    predictor = LevelTemperature(
        dt.TempNet.for_logits(12, tau_min=0.1, tau_max=2.0), tau=0.5, tau_min=0.1, tau_max=2.0
    ).eval()
    logits = torch.randn(3, 12)
    expected = predictor(support=dt.Support(logits))
    torch.testing.assert_close(predictor.temperatures(logits=logits), expected.detach())
    with pytest.raises(ValueError, match="made for"):
        predictor.temperatures(logits=torch.randn(3, 13))


BAD = [
    (
        lambda: LevelTemperature(torch.nn.Linear(2, 1), tau=0.1, tau_min=0.01, tau_max=1.0),
        TypeError,
        "predictor",
    ),
    (lambda: _level(tau=2.0), ValueError, "tau"),
    (lambda: _level(power=0.0), ValueError, "power"),
    (lambda: _level(gamma=0.0), ValueError, "gamma"),
    (
        lambda: LevelTemperature(
            dt.IndividualTemperature(5, tau_min=0.1, tau_max=1.0), tau=0.2, tau_min=0.1, tau_max=1.0
        ),
        ValueError,
        "updates itself",
    ),
    (lambda: ScaledLikelihoodLoss(0.1, tau=0.1), TypeError, "scale"),
    (
        lambda: ScaledLikelihoodLoss(dt.TempNet(4, tau_min=0.1, tau_max=1.0), tau=0.1),
        ValueError,
        "scale.*reads",
    ),
    (lambda: ScaledLikelihoodLoss(dt.ConstantTemperature(0.1), tau=-0.1), ValueError, "tau"),
    (lambda: _with(tau_from="text"), TypeError, "tau_from as a mapping"),
    (lambda: _with(tau_from={"text": "words"}), ValueError, "views out of"),
    (lambda: _with(tau_from={"text": "image", "image": "text"}), ValueError, "views out of"),
    (lambda: _with("individual", tau_from={"text": "image"}), ValueError, "updates itself"),
    (
        lambda: _with(tau_from={"text": "image"}, tau_loss=_replaying()),
        ValueError,
        "features of view 'image'.*Pass replay=0",
    ),
    (lambda: _of_levels(_replaying()), ValueError, "LevelTemperature.*Pass replay=0"),
]


def _replaying() -> dict[str, dt.QueuedLoss]:
    return {v: dt.QueuedLoss(dt.LikelihoodLoss(), size=9, features=4, replay=3) for v in ("image", "text")}


def _of_levels(tau_loss) -> dt.Objective:
    host = small.two_tower()
    return dt.Objective(host, {v: _level() for v in host.views}, dt.KLRobustLoss(0.5), tau_loss=tau_loss)


def _with(predictor: str = "tempnet", **options) -> dt.Objective:
    return small.objective(predictor, **options)


@pytest.mark.parametrize(("build", "error", "words"), BAD)
def test_what_does_not_fit_is_refused(build, error, words, no_shape_checks):
    with pytest.raises(error, match=f"(?s)expected.*{words}"):
        build()


# Several processes -------------------------------------------------------------------------------------------


def _levels(rank: int, world: int) -> dict[str, list]:
    images, texts = small.data()
    objective = _objective()
    optimizer = small.optimizer(objective)
    model = torch.nn.parallel.DistributedDataParallel(objective) if world > 1 else objective
    for index in small.batches(6, size=12):
        mine = index.split([5, 7])[rank] if world > 1 else index
        model(images[mine], texts[mine], index=mine).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {key: value.tolist() for key, value in objective.state_dict().items()}


@pytest.mark.slow
def test_two_processes_keep_one_level():
    expected = _levels(0, 1)
    for state in in_processes(2, _levels):
        for key, value in expected.items():
            got, wanted = (torch.tensor(x, dtype=torch.float64) for x in (state[key], value))
            # Adam turns the rounding of a gradient that is nearly zero, as that of the level, into a part of a step.
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-7, msg=lambda m, key=key: f"{key}: {m}")
