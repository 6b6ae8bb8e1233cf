"""When memory is written, and when it is not: the ways in which training loops really go."""

import copy
import pickle

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
    objective, exact = small.objective("constant"), small.objective("constant", estimator=dt.Exact)
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
        4, tau_min=0.01, tau_max=100.0, tau_init=50.0, update=dt.GradientUpdate(lr=1.0, beta=1.0, clip=5.0)
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
