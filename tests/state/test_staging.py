"""When memory is written, and when it is not: the ways in which training loops really go."""

import copy
import math
import pickle
import re

import pytest
import small
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dro_temp as dt

IMAGES, TEXTS = small.data()
A, B = torch.arange(6), torch.arange(6, 12)


def seen(objective, view="image"):
    return objective.losses[view].estimator.log_u.isfinite().nonzero().flatten().tolist()


def forward(objective, index):
    return objective(IMAGES[index], TEXTS[index], index=index)


PLAIN = {
    "foreach": lambda p: torch.optim.Adam(p, foreach=True),
    "single": lambda p: torch.optim.Adam(p, foreach=False),
    "fused": lambda p: torch.optim.Adam(p, fused=True),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adafactor": lambda p: torch.optim.Adafactor(p),
}


class ThroughData(torch.optim.SGD):
    """Many published optimizers write p.data, which no version counter sees."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-0.1)


PLAIN["p.data"] = lambda p: ThroughData(p, lr=0.1)


@pytest.mark.parametrize("name", PLAIN)
def test_every_plain_optimizer_is_found_out(name):
    objective = small.objective()
    plain = PLAIN[name](objective.parameters())
    forward(objective, A).loss.backward()
    plain.step()
    plain.zero_grad()
    with pytest.raises(RuntimeError, match=r"(?s)expected.*committed.*received.*CompositionalOptimizer"):
        forward(objective, A)
    assert not objective.pending


@pytest.mark.parametrize("predictor", ["constant", "individual"])
def test_a_closure_ends_an_accumulation_window(predictor):
    """As Lightning steps: the last part of the window runs inside step(closure)."""
    results = []
    for inside in (False, True):
        objective = small.objective(predictor)
        opt = small.optimizer(objective)
        forward(objective, A).loss.backward()

        def last(objective=objective):
            loss = forward(objective, B).loss
            loss.backward()
            return loss

        if inside:
            opt.step(last)
        else:
            last()
            opt.step()
        assert seen(objective) == [*A.tolist(), *B.tolist()]
        results.append(objective)
    small.assert_same_state(*results)


def test_freezing_a_layer_between_forwards_is_no_step():
    objective = small.objective()
    forward(objective, A).loss.backward()
    objective.host.image_encoder.weight.requires_grad_(False)
    forward(objective, B).loss.backward()
    objective.commit()
    assert seen(objective) == [*A.tolist(), *B.tolist()]


def test_a_forward_that_is_never_backpropagated_leaves_no_trace():
    objective = small.objective()
    opt = small.optimizer(objective)
    forward(objective, B)  # a validation that forgot eval()
    forward(objective, A).loss.backward()
    opt.step()
    assert seen(objective) == A.tolist()


@pytest.mark.parametrize("order", ["before forward", "before backward", "after step"])
@pytest.mark.parametrize("who", ["optimizer", "objective"])
def test_a_skipped_step_is_forgotten_wherever_gradients_are_cleared(order, who):
    objective = small.objective("individual")
    opt = small.optimizer(objective)
    clear = opt.zero_grad if who == "optimizer" else objective.zero_grad
    for index, taken in ((A, False), (B, True)):
        if order == "before forward":
            clear()
        loss = forward(objective, index).loss
        if order == "before backward":
            clear()
        loss.backward()
        if taken:
            opt.step()
        if order == "after step":
            clear()
    assert seen(objective) == B.tolist()
    assert (objective.predictors["image"].momentum != 0).nonzero().flatten().tolist() == B.tolist()
    assert int(objective.losses["image"].estimator.steps) == 1


def test_accelerate_knows_of_a_skipped_step():
    """It infers one from step() not having been called: the wrapper must not pretend otherwise."""
    objective = small.objective()
    opt = small.optimizer(objective)
    assert not getattr(opt, "_step_supports_amp_scaling", False)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append(1))
    scaler.scale(forward(objective, A).loss).backward()
    next(objective.host.parameters()).grad.fill_(torch.inf)
    scaler.step(opt)
    assert calls == []


def test_gradients_clipped_under_a_scaler():
    objective = small.objective()
    opt = small.optimizer(objective)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(forward(objective, A).loss).backward()
    scaler.unscale_(opt)
    nn.utils.clip_grad_norm_(objective.parameters(), 1e-3)
    scaler.step(opt)
    assert seen(objective) == A.tolist()


@pytest.mark.parametrize("predictor", ["constant", "individual"])
def test_a_step_after_a_forgotten_train_is_refused(predictor):
    objective = small.objective(predictor)
    opt = small.optimizer(objective)
    before = copy.deepcopy(objective.state_dict())
    with pytest.raises(RuntimeError, match=r"expected.*training mode.*received.*objective.train\(\)"):
        opt.step()
    forward(objective.eval(), A).loss.backward()
    with pytest.raises(RuntimeError, match=r"LogMovingAverage|IndividualTemperature"):
        opt.step()
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_individual_temperatures_cut_off_from_backward_are_noticed():
    objective = small.objective("individual")
    opt = small.optimizer(objective)
    forward(objective, A).loss.backward(inputs=list(objective.host.parameters()))
    with pytest.raises(RuntimeError, match="IndividualTemperature"):
        opt.step()


def test_loading_forgets_what_was_proposed():
    for load in ("objective", "optimizer"):
        objective = small.objective("individual")
        opt = small.optimizer(objective)
        forward(objective, A).loss.backward()
        if load == "objective":
            objective.load_state_dict(copy.deepcopy(objective.state_dict()))
        else:
            opt.load_state_dict(opt.state_dict())
        assert not objective.pending, load


def test_copies_start_without_proposals():
    objective = small.objective("individual")
    forward(objective, A).loss.backward()
    for clone in (
        copy.deepcopy(objective),
        pickle.loads(pickle.dumps(small.objective("constant", gamma=0.5))),
    ):
        assert not clone.pending
        forward(clone, B).loss.backward()
        clone.commit()
        assert seen(clone) == B.tolist()
    assert objective.pending


def test_a_weight_average_of_the_models_evaluates():
    """Parameters are averaged; memory is not something to average, and is copied."""
    objective = small.objective("tempnet")
    average = AveragedModel(objective, avg_fn=lambda a, b, n: 0.9 * a + 0.1 * b)
    opt = small.optimizer(objective)
    for index in (A, B):
        forward(objective, index).loss.backward()
        opt.step()
        opt.zero_grad()
        average.update_parameters(objective)
    assert forward(average.module.eval(), A).loss.isfinite()


def test_nothing_that_is_no_number_is_remembered():
    objective = small.objective("constant", check_finite=False)
    images = IMAGES.clone()
    images[2] = torch.nan
    objective(images[A], TEXTS[A], index=A).loss.backward()
    objective.commit()
    assert not bool(objective.losses["image"].estimator.log_u.isnan().any())


def test_held_out_pairs_need_no_number():
    """Their value is that of their own batch, whatever was remembered of the training pairs."""
    objective, exact = small.objective("constant"), small.objective("constant", estimator=dt.estimators.Exact)
    opt = small.optimizer(objective)
    forward(objective, A).loss.backward()
    opt.step()
    exact.host.load_state_dict(objective.host.state_dict())
    held_out = (IMAGES[12:20], TEXTS[12:20])
    torch.testing.assert_close(objective.eval()(*held_out).loss, exact.eval()(*held_out).loss)
    with pytest.raises(ValueError, match=r"objective.eval\(\)"):
        objective.train()(*held_out)


@pytest.mark.parametrize("module", ["estimator", "table"])
def test_no_memory_is_rounded(module):
    objective = small.objective("individual").float()
    table = objective.predictors["image"]
    objective.bfloat16()
    assert table.tau.dtype == table.momentum.dtype == torch.float32
    assert objective.losses["image"].estimator.log_u.dtype == torch.float32
    for _ in range(100):
        table.stage(torch.tensor([0]), torch.tensor([0.02]))
        table.commit()
    assert table.tau[0].item() == pytest.approx(0.05**0.5 - 100 * 0.05 * 0.02, abs=2e-3)


def test_a_table_of_another_size_is_refused():
    saved = dt.IndividualTemperature(5, tau_min=0.1, tau_max=1.0).state_dict()
    with pytest.raises(ValueError, match=r"expected the memory of 7 samples.*received one of 5.*Individual"):
        dt.IndividualTemperature(7, tau_min=0.1, tau_max=1.0).load_state_dict(saved)


def test_individual_clip_acts_on_the_mean_of_duplicates():
    table = dt.IndividualTemperature(
        4,
        tau_min=0.01,
        tau_max=100.0,
        tau_init=50.0,
        update=dt.predictors.GradientUpdate(lr=1.0, beta=1.0, clip=5.0),
    )
    table.stage(torch.tensor([0, 1, 1]), torch.tensor([8.0, 20.0, -16.0]))
    table.commit()
    assert table.tau.tolist() == pytest.approx([45.0, 48.0, 50.0, 50.0])


@pytest.mark.parametrize("order", ["zero_grad last", "zero_grad before backward", "a step is skipped"])
def test_compiling_the_whole_objective_changes_nothing(no_shape_checks, order):
    plan = small.batches(4)
    results = []
    for compiled in (False, True):
        objective = small.objective("tempnet")
        opt = small.optimizer(objective)
        call = torch.compile(objective, fullgraph=True, backend="aot_eager") if compiled else objective
        for number, index in enumerate(plan):
            output = call(IMAGES[index], TEXTS[index], index=index)
            if order == "zero_grad before backward":
                opt.zero_grad()
            output.loss.backward()
            if order != "a step is skipped" or number != 2:  # as a gradient scaler does
                opt.step()
            if order != "zero_grad before backward":
                opt.zero_grad()
        results.append(objective)
    small.assert_same_state(*results, digits=1e-12)
    torch.compiler.reset()


# A state that does not fit is refused before any of it is loaded.


def _state(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


def _unchanged(module, before):
    return all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("what", ["memory", "predictor", "prototypes"])
def test_a_state_of_another_size_overwrites_nothing(what, wrapped):
    objective = small.objective("tempnet")
    others = small.objective("tempnet").state_dict()
    others = {name: x + 1 for name, x in others.items()}
    if what == "memory":
        name = next(name for name in reversed(others) if name.endswith("log_u"))
        others[name] = torch.zeros(3)
        kind, said = ValueError, rf"{re.escape(name)}, received one of 3.*\.resize\({small.N}\)"
    else:
        end = "last.weight" if what == "predictor" else "prototypes"
        name = next(name for name in reversed(others) if name.endswith(end))
        others[name] = torch.zeros(2, 3)
        kind, said = (
            RuntimeError,
            rf"other shapes: .*{re.escape(name)} \[2, 3\] in place of.*nothing was loaded",
        )
    module = torch.nn.Sequential(objective) if wrapped else objective
    before = _state(objective)
    with pytest.raises(kind, match=said):
        module.load_state_dict({f"0.{k}" if wrapped else k: x for k, x in others.items()}, strict=False)
    assert _unchanged(objective, before)


@pytest.mark.parametrize(
    "build",
    [
        lambda n: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(n)),
        lambda n: dt.GroupRisk(n),
        lambda n: dt.QueuedLoss(dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(n)), size=8, features=4),
        lambda n: dt.IndividualTemperature(n, tau_min=0.1, tau_max=1.0),
        lambda n: dt.IndividualTemperature(n, tau_min=0.1, tau_max=1.0, update=None),
        lambda n: dt.LogMovingAverage(n),
    ],
)
def test_a_part_by_itself_overwrites_nothing(build):
    module, state = build(5), {name: x + 1 for name, x in build(4).state_dict().items()}
    before = _state(module)
    with pytest.raises((ValueError, RuntimeError), match=r"received (one of 4|other shapes)"):
        module.load_state_dict(state)
    assert _unchanged(module, before)


def test_a_host_that_converts_what_it_loads_may():
    class Converting(torch.nn.Linear):
        def _load_from_state_dict(self, state, prefix, *args):
            state[prefix + "weight"] = state[prefix + "weight"].T
            super()._load_from_state_dict(state, prefix, *args)

    host = dt.hosts.Classifier(Converting(6, 4), torch.nn.Linear(4, 10))
    objective = dt.Objective(host, dt.TempNet(4, tau_min=0.1, tau_max=4.0), dt.KLRobustLoss(rho=1.0))
    state = _state(objective)
    name = next(name for name, x in state.items() if x.shape == (4, 6))
    state[name] = state[name].T
    objective.load_state_dict(state)


# A data set that grows.


@pytest.mark.parametrize("on_host", [False, True])
def test_a_table_grows_with_the_data_set(on_host):
    estimator = dt.LogMovingAverage(3, gamma=0.5, on_host=on_host)
    estimator.stage(torch.tensor([0, 2]), torch.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match=r"expected no pending proposals.*received.*optimizer.step"):
        estimator.resize(5)
    estimator.commit()
    steps = estimator.steps.clone()
    estimator.resize(5)
    assert estimator.log_u.tolist() == [1.0, -math.inf, 2.0, -math.inf, -math.inf]
    assert estimator.log_u.dtype == torch.float32
    assert (estimator.num_samples, estimator.population(2), len(estimator.state_dict()["log_u"])) == (5, 4, 5)
    assert torch.equal(estimator.steps, steps)
    estimator.stage(torch.tensor([4]), torch.tensor([3.0]))
    estimator.commit()
    assert estimator.log_u[4] == 3.0
    with pytest.raises(ValueError, match=r"at least the 5 samples.*received num_samples=2.*shrink=True"):
        estimator.resize(2)
    with pytest.raises(ValueError, match="num_samples >= 1"):
        estimator.resize(0, shrink=True)
    estimator.resize(2, shrink=True)
    assert estimator.log_u.tolist() == [1.0, -math.inf]
    with pytest.raises(IndexError):
        estimator.propose(torch.tensor([2]), torch.tensor([0.0]), torch.tensor([True]))


def test_individual_temperatures_grow():
    table = dt.IndividualTemperature(2, tau_min=0.1, tau_max=1.0, tau_init=0.5)
    table.stage(torch.tensor([1]), torch.tensor([1.0]))
    table.commit()
    old = table.tau.tolist()
    momentum = table.momentum.tolist()
    table.resize(4)
    assert table.tau.tolist() == [*old, 0.5, 0.5]
    assert table.momentum.tolist() == [*momentum, 0.0, 0.0]
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    table.resize(5, optimizer=other)  # one call serves all kinds of tables
    assert len(table.tau) == 5
    trained = dt.IndividualTemperature(2, tau_min=0.1, tau_max=1.0, update=None)
    with pytest.raises(
        ValueError, match=r"expected the optimizer that trains this table.*received one without"
    ):
        trained.resize(5, optimizer=other)
    assert len(trained.tau) == 2


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_a_table_of_the_base_optimizer_grows_with_its_moments(kind):
    table = dt.IndividualTemperature(3, tau_min=0.1, tau_max=1.0, tau_init=0.5, update=None)
    optimizer, same = kind(table.parameters()), table.tau

    def step(index):
        optimizer.zero_grad()
        table(index=torch.tensor(index)).sum().backward()
        optimizer.step()

    step([0, 1])
    old = table.tau.tolist()
    moments = {k: x.clone() for k, x in optimizer.state[table.tau].items() if x.shape == (3,)}
    assert moments
    with pytest.raises(ValueError, match="shrink=True"):
        table.resize(2, optimizer=optimizer)
    table.resize(5, optimizer=optimizer)
    assert table.tau is same
    assert table.tau.tolist() == [*old, 0.5, 0.5]
    for name, x in moments.items():
        assert optimizer.state[table.tau][name].tolist() == [*x.tolist(), 0.0, 0.0]
    step([4])
    assert table.tau[4] < 0.5
    fresh = kind(table.parameters())
    fresh.load_state_dict(optimizer.state_dict())


def test_a_run_goes_on_with_a_data_set_that_grew():
    """Saved, loaded at the size that it had, grown: as if it had never stopped."""
    through, saved = (small.objective("individual") for _ in range(2))
    optimizers = [small.optimizer(objective) for objective in (through, saved)]
    batches = small.batches(6)
    for objective, optimizer in zip((through, saved), optimizers, strict=True):
        small.train(objective, optimizer, batches[:3])
    states = saved.state_dict(), optimizers[1].state_dict()
    fresh = small.objective("individual")
    fresh.load_state_dict(states[0])
    for objective in (through, fresh):
        for memory in objective.memory_modules():
            memory.resize(small.N + 7)
    optimizer = small.optimizer(fresh)
    optimizer.load_state_dict(states[1])
    small.train(through, optimizers[0], batches[3:])
    small.train(fresh, optimizer, batches[3:])
    small.assert_same_state(through, fresh)
    assert all(len(memory.tau) == small.N + 7 for memory in fresh.memory_modules() if hasattr(memory, "tau"))
    with pytest.raises(ValueError, match=rf"Build .*\({small.N}, \.\.\.\).*\.resize\({small.N + 7}\)"):
        fresh.load_state_dict(states[0])


def _with_a_trained_table():
    """Estimators, a table with its own update, and one that the base optimizer trains."""
    host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
    bounds = {"tau_min": 0.1, "tau_max": 1.0}
    predictor = {
        "image": dt.IndividualTemperature(8, update=None, **bounds),
        "text": dt.IndividualTemperature(8, **bounds),
    }
    loss = {view: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(8)) for view in host.views}
    risk = {view: dt.TiltedRisk(1.0, estimator=dt.LogMovingAverage(1)) for view in host.views}
    objective = dt.Objective(host, predictor, loss, risk=risk)
    base = torch.optim.AdamW(objective.param_groups(lr=1e-2))
    return objective, dt.CompositionalOptimizer(base, objective)


def _propose(objective, index):
    n = len(index)
    objective(torch.randn(n, 6), torch.randn(n, 5), index=torch.tensor(index)).loss.backward()


def _sizes(objective):
    tables = (*objective.predictors.values(), *(loss.estimator for loss in objective.losses.values()))
    return [table.num_samples for table in tables]


def test_all_tables_of_an_objective_grow_or_none_does():
    objective, optimizer = _with_a_trained_table()
    _propose(objective, [0, 3, 7])
    with pytest.raises(RuntimeError, match="expected no pending proposals"):
        objective.resize(12, optimizer=optimizer)
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(ValueError, match=r"at least the 8 samples.*shrink=True"):
        objective.resize(5, optimizer=optimizer)
    # The last table of all is the one that refuses.
    objective.losses["text"].estimator.stage(torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="expected no pending proposals"):
        objective.resize(12, optimizer=optimizer)
    objective.discard()
    other = torch.optim.SGD(objective.host.parameters(), 0.1)
    with pytest.raises(ValueError, match="expected the optimizer that trains this table"):
        objective.resize(12, optimizer=other)
    with pytest.raises(ValueError, match="num_samples >= 1"):
        objective.resize(0, shrink=True)
    assert _sizes(objective) == [8] * 4
    objective.resize(12, optimizer=optimizer)
    assert _sizes(objective) == [12] * 4
    assert [risk.estimator.num_samples for risk in objective.risks.values()] == [1, 1]
    _propose(objective, [11, 0, 8])
    optimizer.step()
    assert objective.losses["image"].estimator.log_u[11].isfinite()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_moments_that_did_not_grow_are_named(kind):
    objective, _ = _with_a_trained_table()
    optimizer = dt.CompositionalOptimizer(kind(objective.param_groups(lr=1e-2)), objective)
    _propose(objective, [0, 3, 7])
    optimizer.step()
    optimizer.zero_grad()
    objective.resize(12)
    _propose(objective, [11, 0, 8])
    weight = objective.host.image_encoder.weight.clone()
    with pytest.raises(
        ValueError, match=r"of a table of 12 samples, received that of 8.*optimizer=optimizer"
    ):
        optimizer.step()
    assert torch.equal(weight, objective.host.image_encoder.weight)


def test_an_optimizer_with_other_state_under_a_table_steps():
    table = dt.IndividualTemperature(8, tau_min=0.1, tau_max=1.0, update=None)
    host = dt.hosts.Classifier(torch.nn.Linear(6, 10), None)
    objective = dt.Objective(host, table, dt.KLRobustLoss(1.0))
    base = torch.optim.LBFGS([table.tau, *host.parameters()], lr=1e-3, max_iter=2)
    optimizer = dt.CompositionalOptimizer(base, objective)
    batch = torch.randn(4, 6), torch.randint(10, (4,))

    def closure():
        optimizer.zero_grad()
        loss = objective(*batch, index=torch.arange(4)).loss
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)


def test_a_table_without_momentum_checks_sample_numbers():
    """As an objective does in several processes, before any of them writes."""
    table = dt.IndividualTemperature(4, tau_min=0.1, tau_max=1.0, update=None)
    table.check(torch.tensor([0, 3]))
    with pytest.raises(IndexError, match="expected sample numbers from 0 to 3, received"):
        table.check(torch.tensor([4]))
