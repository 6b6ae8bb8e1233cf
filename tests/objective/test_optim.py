"""CompositionalOptimizer is an optimizer like any other, and commits exactly the steps that were taken."""

import copy
import inspect
import io

import pytest
import small
import torch
from torch.optim import lr_scheduler

import dro_temp as dt


def test_shares_groups_and_state_with_its_base():
    objective = small.objective()
    base = torch.optim.AdamW(objective.param_groups(lr=0.01, tau_lr=0.02, weight_decay=0.1))
    opt = dt.CompositionalOptimizer(base, objective)
    assert isinstance(opt, torch.optim.Optimizer)
    assert opt.param_groups is base.param_groups
    small.train(objective, opt, small.batches(1))
    assert opt.state is base.state
    assert [g["name"] for g in opt.param_groups] == ["host", "temperature"]
    assert [g["lr"] for g in opt.param_groups] == [0.01, 0.02]
    assert [g["weight_decay"] for g in opt.param_groups] == [0.1, 0.0]
    assert "AdamW" in repr(opt)


def test_takes_the_same_steps_as_its_base():
    """Without memory (exact loss), nothing is added."""
    results = []
    for wrap in (True, False):
        objective = small.objective(estimator=dt.estimators.Exact)
        base = torch.optim.AdamW(objective.param_groups(lr=0.01))
        small.train(objective, dt.CompositionalOptimizer(base, objective) if wrap else base, small.batches(4))
        results.append(objective)
    small.assert_same_state(*results)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
}


def test_the_list_of_schedulers_is_complete():
    there = {
        name
        for name, c in vars(lr_scheduler).items()
        if inspect.isclass(c)
        and not name.startswith("_")
        and (issubclass(c, lr_scheduler.LRScheduler) or name == "ReduceLROnPlateau")
    }
    assert there - set(SCHEDULERS) <= {"LRScheduler"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_drives_it_as_it_drives_the_base(name):
    rates = []
    for wrap in (True, False):
        objective = small.objective(estimator=dt.estimators.Exact)
        opt = torch.optim.SGD(objective.param_groups(lr=0.01), momentum=0.9)
        if wrap:
            opt = dt.CompositionalOptimizer(opt, objective)
        scheduler = SCHEDULERS[name](opt)
        seen = []
        for _ in range(5):
            small.train(objective, opt, small.batches(1))
            scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
            seen.append([group["lr"] for group in opt.param_groups])
        rates.append(seen)
    assert rates[0] == rates[1]


@pytest.mark.parametrize("predictor", small.PREDICTORS)
@pytest.mark.parametrize("unscale_first", [False, True])
def test_a_gradient_scaler_changes_nothing_and_a_skipped_step_leaves_no_trace(predictor, unscale_first):
    """An overflow in the third step: parameters, memory and gamma are those of a run without that batch."""
    images, texts = small.data()
    plan = small.batches(5)
    results = []
    for scaled in (True, False):
        objective = small.objective(predictor, gamma=dt.estimators.CosineGamma(0.3, epochs=4))
        opt = small.optimizer(objective)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6, enabled=scaled)
        for k, index in enumerate(plan):
            overflow = k == 2
            if overflow and not scaled:
                continue
            loss = objective(images[index], texts[index], index=index).loss
            scaler.scale(loss).backward()
            if overflow:
                before = copy.deepcopy(objective.state_dict())
                next(objective.host.parameters()).grad.fill_(float("inf"))
            if unscale_first:
                scaler.unscale_(opt)
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
            if overflow:
                assert scaler.get_scale() == 2.0**9
                assert not objective.pending
                for name, value in objective.state_dict().items():
                    assert torch.equal(value, before[name]), name
        results.append(objective)
    assert int(results[0].losses["image"].estimator.steps) == 4
    small.assert_same_state(*results, digits=1e-12)


def test_saving_and_resuming_is_bit_exact():
    plan = small.batches(8)
    for predictor in small.PREDICTORS:
        straight = small.objective(predictor, gamma=dt.estimators.CosineGamma(0.3, epochs=6))
        opt = small.optimizer(straight)
        small.train(straight, opt, plan[:4])
        file = io.BytesIO()
        torch.save({"objective": straight.state_dict(), "optimizer": opt.state_dict()}, file)
        small.train(straight, opt, plan[4:])

        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed = small.objective(predictor, gamma=dt.estimators.CosineGamma(0.3, epochs=6))
        opt = small.optimizer(resumed)
        resumed.load_state_dict(saved["objective"])
        opt.load_state_dict(saved["optimizer"])
        small.train(resumed, opt, plan[4:])
        small.assert_same_state(straight, resumed)


def test_gamma_of_the_optimizer_reaches_every_estimator():
    objective = small.objective(gamma=0.9)
    schedule = dt.estimators.CosineGamma(0.2, epochs=3)
    opt = small.optimizer(objective, gamma=schedule)
    for view in objective.host.views:
        assert objective.losses[view].estimator.gamma is schedule
    small.train(objective, opt, small.batches(2))
    assert int(objective.losses["text"].estimator.steps) == 2


def test_a_closure_is_evaluated_and_committed():
    images, texts = small.data()
    objective = small.objective("constant", estimator=lambda: dt.LogMovingAverage(small.N, gamma=0.5))
    opt = dt.CompositionalOptimizer(torch.optim.LBFGS(objective.host.parameters(), max_iter=3), objective)
    index = torch.arange(6)

    def closure():
        opt.zero_grad()
        loss = objective(images[index], texts[index], index=index).loss
        loss.backward()
        return loss

    # LBFGS moves the parameters between evaluations of one step: that is one step, not several.
    assert opt.step(closure).detach() != 0
    assert not objective.pending
    assert int(objective.losses["image"].estimator.steps) == 1


def test_step_hooks_run():
    objective = small.objective()
    opt = small.optimizer(objective)
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.register_step_post_hook(lambda *_: calls.append("post"))
    small.train(objective, opt, small.batches(1))
    assert calls == ["pre", "post"]


@pytest.mark.parametrize("predictor", small.PREDICTORS)
def test_accelerate_prepares_and_accumulates(predictor):
    accelerate = pytest.importorskip("accelerate")
    images, texts = small.data()
    plan = torch.stack(small.batches(6))

    by_hand = small.objective(predictor)
    opt = small.optimizer(by_hand)
    for k, index in enumerate(plan):
        (by_hand(images[index], texts[index], index=index).loss / 2).backward()
        if k % 2:
            opt.step()
            opt.zero_grad()

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    objective = small.objective(predictor)
    raw = small.optimizer(objective)
    loader = torch.utils.data.DataLoader(plan, batch_size=None)
    scheduler = lr_scheduler.ConstantLR(raw, factor=1.0)
    prepared, opt, loader, scheduler = accelerator.prepare(objective, raw, loader, scheduler)
    for index in loader:
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(images[index], texts[index], index=index).loss)
            opt.step()
            scheduler.step()
            opt.zero_grad()
    assert int(objective.losses["image"].estimator.steps) == 3
    small.assert_same_state(by_hand, objective, digits=1e-15)


def test_deepcopy_and_pickle_keep_objective_and_base_together():
    objective = small.objective()
    opt = small.optimizer(objective)
    small.train(objective, opt, small.batches(1))
    clone = copy.deepcopy(opt)
    small.train(clone.objective, clone, small.batches(2))
    small.train(objective, opt, small.batches(2))
    small.assert_same_state(objective, clone.objective)
