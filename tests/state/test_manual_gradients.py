"""Loops that take gradients by themselves, optimizers that are saved before their first step, forwards left alone."""

import copy
import gc

import pytest
import small
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict

import dro_temp as dt

predictors = pytest.mark.parametrize("predictor", small.PREDICTORS)
# A table of individual temperatures follows its own gradient, which `autograd.grad` over parameters does not compute.
manual = pytest.mark.parametrize("predictor", [name for name in small.PREDICTORS if name != "individual"])


def _forward(objective, index):
    images, texts = small.data()
    return objective(images[index], texts[index], index=index)


def _grads(output, parameters, **options):
    return torch.autograd.grad(output.loss, parameters, allow_unused=True, **options)


@manual
@pytest.mark.parametrize("clear", ["at the end", "before the gradients are set", "never"])
def test_autograd_grad_in_place_of_backward(predictor, clear):
    """The same training, to the last bit."""
    objectives = small.objective(predictor), small.objective(predictor)
    optimizers = [small.optimizer(objective) for objective in objectives]
    small.train(objectives[0], optimizers[0], small.batches(5))
    parameters = [p for p in objectives[1].parameters() if p.requires_grad]
    for index in small.batches(5):
        gradients = _grads(_forward(objectives[1], index), parameters)
        if clear == "before the gradients are set":
            optimizers[1].zero_grad()
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimizers[1].step()
        if clear == "at the end":
            optimizers[1].zero_grad()
    small.assert_same_state(*objectives)


@manual
def test_several_forwards_and_their_gradients_before_one_step(predictor):
    """Gradient norms per loss, MGDA: combined by hand, they are what accumulation makes."""
    objectives = small.objective(predictor), small.objective(predictor)
    optimizers = [small.optimizer(objective) for objective in objectives]
    parameters = [p for p in objectives[1].parameters() if p.requires_grad]
    for first, second in zip(small.batches(3), small.batches(3, seed=9), strict=True):
        for index in (first, second):
            _forward(objectives[0], index).loss.backward()
        parts = [_grads(_forward(objectives[1], index), parameters) for index in (first, second)]
        for p, a, b in zip(parameters, *parts, strict=True):
            p.grad = a if b is None else b if a is None else a + b
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    small.assert_same_state(*objectives)


def test_a_table_that_follows_its_own_gradient_wants_backward():
    objective = small.objective("individual")
    opt, parameters = small.optimizer(objective), list(objective.host.parameters())
    for p, gradient in zip(parameters, _grads(_forward(objective, torch.arange(6)), parameters), strict=True):
        p.grad = gradient
    with pytest.raises(RuntimeError, match=r"autograd\.grad"):
        opt.step()


def test_gradients_of_each_view_from_one_forward():
    objective = small.objective()
    opt, parameters = small.optimizer(objective), list(objective.host.parameters())
    for index in small.batches(3):
        output = _forward(objective, index)
        norms = [
            torch.autograd.grad(values.mean(), parameters, retain_graph=True)[0].norm()
            for values in output.values.values()
        ]
        assert all(norm > 0 for norm in norms)
        output.loss.backward()
        opt.step()
        opt.zero_grad()
    for loss in objective.losses.values():
        assert int(loss.estimator.log_u.isfinite().sum()) > 6


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_plain_optimizer_over_memory_is_still_refused(fused, accumulate):
    objective = small.objective().float()
    plain = torch.optim.AdamW(objective.param_groups(lr=0.01), fused=fused)
    images, texts = small.data(dtype=torch.float32)

    def forward():
        index = torch.arange(6)
        return objective(images[index], texts[index], index=index)

    for _ in range(accumulate):
        forward().loss.backward()
    plain.step()
    plain.zero_grad()
    with pytest.raises(RuntimeError, match="without a commit"):
        forward()


@predictors
def test_forwards_that_are_left_do_not_pile_up(predictor):
    objective = small.objective(predictor)
    opt = small.optimizer(objective)
    index = torch.arange(6)
    for _ in range(20):
        _forward(objective, index)
    gc.collect()
    held = _forward(objective, index)  # may still be backpropagated
    assert all(len(staged.staged) <= 2 for staged in objective.memory_modules())
    held.loss.backward()
    opt.step()
    expected = small.objective(predictor)
    small.train(expected, small.optimizer(expected), [index])
    small.assert_same_state(objective, expected)


def test_a_loss_whose_output_is_gone_may_still_be_backpropagated():
    objective = small.objective()
    opt = small.optimizer(objective)
    losses = [_forward(objective, index).loss for index in small.batches(3)]
    gc.collect()
    sum(losses).backward()
    opt.step()
    seen = objective.losses["image"].estimator.log_u.isfinite().sum()
    assert int(seen) == len(torch.cat(small.batches(3)).unique())


@predictors
@pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("pending", [False, True])
def test_distributed_checkpoint_of_a_fresh_optimizer(predictor, base, pending):
    """It makes the optimizer's state by a step of learning rate 0, which commits nothing and forgets nothing."""
    objective = small.objective(predictor)
    opt = dt.CompositionalOptimizer(base(objective.param_groups(lr=0.01)), objective)
    output = _forward(objective, torch.arange(6)) if pending else None
    proposals = [list(staged.staged) for staged in objective.memory_modules()]
    before = copy.deepcopy(objective.state_dict())
    rates = [group["lr"] for group in opt.param_groups]
    state = get_optimizer_state_dict(objective, opt)
    model_state, again = get_state_dict(objective, opt)
    trained = sum(p.requires_grad for p in objective.parameters())
    assert len(state["state"]) == len(again["state"]) == (trained if base is torch.optim.AdamW else 0)
    assert model_state.keys() == before.keys()
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert rates == [group["lr"] for group in opt.param_groups]
    assert [list(staged.staged) for staged in objective.memory_modules()] == proposals
    assert objective.pending == (output is not None)


def test_a_first_step_at_learning_rate_zero_commits():
    """As under a warm-up that starts at 0: the forward was backpropagated, and the memory moves on."""
    objective = small.objective()
    base = torch.optim.AdamW(objective.param_groups(lr=0.0))
    small.train(objective, dt.CompositionalOptimizer(base, objective), small.batches(1))
    assert int(objective.losses["image"].estimator.log_u.isfinite().sum()) == 6


def test_hooks_of_the_optimizers_state_are_called():
    objective = small.objective()
    opt, calls = small.optimizer(objective), []
    small.train(objective, opt, small.batches(1))
    opt.register_state_dict_pre_hook(lambda o: calls.append(("before saving", o)))
    opt.register_state_dict_post_hook(lambda o, state: {**state, "note": 1})
    opt.register_load_state_dict_pre_hook(lambda o, state: {k: v for k, v in state.items() if k != "note"})
    opt.register_load_state_dict_post_hook(lambda o: calls.append(("after loading", o)))
    state = opt.state_dict()
    assert state["note"] == 1
    opt.load_state_dict(state)
    assert calls == [("before saving", opt), ("after loading", opt)]


def _finite(objective):
    return sorted(objective.losses["image"].estimator.log_u.isfinite().nonzero().flatten().tolist())


def test_a_step_of_manual_gradients_that_a_scaler_skipped_leaves_no_trace():
    objective = small.objective("constant").float()
    opt = dt.CompositionalOptimizer(torch.optim.SGD(objective.param_groups(lr=0.1)), objective)
    scaler, parameters = torch.amp.GradScaler("cpu", init_scale=8.0), list(objective.host.parameters())
    images, texts = small.data(dtype=torch.float32)

    def step(index, factor=1.0):
        loss = objective(images[index], texts[index], index=index).loss
        for p, gradient in zip(
            parameters, torch.autograd.grad(scaler.scale(loss * factor), parameters), strict=True
        ):
            p.grad = gradient
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()

    step(torch.arange(6, 12), float("inf"))
    assert not objective.pending
    step(torch.arange(6))
    assert _finite(objective) == list(range(6))


@pytest.mark.parametrize("clear", [True, False])
def test_gradients_that_were_only_looked_at_leave_no_trace(clear):
    """Norms of another batch's gradients, beside a step by `backward`."""
    objective = small.objective()
    opt, parameters = small.optimizer(objective), list(objective.host.parameters())
    for _ in range(3):
        _grads(_forward(objective, torch.arange(6, 12)), parameters)
        if clear:
            opt.zero_grad()
        _forward(objective, torch.arange(6)).loss.backward()
        opt.step()
        opt.zero_grad()
    assert _finite(objective) == list(range(6))
    expected = small.objective()
    small.train(expected, small.optimizer(expected), [torch.arange(6)] * 3)
    small.assert_same_state(objective, expected)


def test_attacks_on_the_inputs_leave_no_trace():
    """Three gradients of the inputs in training mode, then the step."""
    objective, expected = small.objective(), small.objective()
    opt = small.optimizer(objective)
    images, texts = small.data()
    for index in small.batches(3):
        x = images[index].clone().requires_grad_()
        for _ in range(3):
            torch.autograd.grad(objective(x, texts[index], index=index).loss, x)
            opt.zero_grad()
        objective(images[index], texts[index], index=index).loss.backward()
        opt.step()
        opt.zero_grad()
    small.train(expected, small.optimizer(expected), small.batches(3))
    small.assert_same_state(objective, expected)


def test_probes_beside_training_do_not_pile_up():
    objective = small.objective()
    opt, parameters = small.optimizer(objective), list(objective.host.parameters())
    index = torch.arange(6)
    for _ in range(30):
        _grads(_forward(objective, index), parameters)
    _forward(objective, index).loss.backward()
    assert all(len(staged.staged) == 1 for staged in objective.memory_modules())
    opt.step()
