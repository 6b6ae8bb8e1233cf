"""What every risk over samples must do."""

import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dro_temp.interfaces import SampleRisk
from dro_temp.risks import StandaloneRisk
from dro_temp.state import staged_modules
from dro_temp.testing._asserts import (
    assert_same,
    assert_unchanged,
    assert_writes_nothing,
    few_examples,
    state_of,
)
from dro_temp.testing._cases import RiskCase

_SEEDS = st.integers(0, 999)


def _differentiated(risk: Any, losses: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The risk, and its gradient to the losses."""
    x = losses.clone().requires_grad_()
    value = risk(x, **inputs)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient


def gives_one_number(case: RiskCase) -> None:
    """A finite scalar, float32 or better also from low precision; for few samples and more."""
    for n in (case.smallest, case.smallest + 1, 9):
        risk = case.build()(case.losses(n), **case.groups(n))
        assert risk.shape == ()
        assert risk.dtype == torch.float64
        assert risk.isfinite()
    for dtype in (torch.bfloat16, torch.float16):
        low = case.losses(9).to(dtype)
        value = case.build()(low, **case.groups(9))
        assert value.dtype == torch.float32
        assert_same(value, case.build()(low.float(), **case.groups(9)), f"risk of {dtype}, and of float32")


def gives_a_constant_itself(case: RiskCase) -> None:
    """Losses that are all alike have that risk; a bound of the risk is no lower."""
    for constant in (0.0, -3.7, 1e5):
        losses = torch.full((8,), constant, dtype=torch.float64)
        value = case.build()(losses, **case.groups(8))
        if case.exact:
            assert_same(value, losses[0], f"risk of losses that are all {constant}", rtol=1e-9, atol=1e-9)
        else:
            assert value >= constant - 1e-9 * abs(constant)


@few_examples
@given(_SEEDS, st.floats(0.01, 100), st.booleans())
def lies_between_mean_and_extreme(case: RiskCase, seed: int, scale: float, weighted: bool) -> None:
    """From the mean to the greatest loss, or to the least one; in evaluation, where nothing is remembered."""
    losses, inputs = case.losses(9, seed=seed, scale=scale), case.groups(9, seed=seed)
    weight = inputs["weight"] = case.weight(9, seed=seed) if weighted else torch.ones_like(losses)
    value, mean = case.build().eval()(losses, **inputs), float((weight * losses).sum() / weight.sum())
    slack = 1e-9 * scale
    if case.side == "worst":
        low, high = mean, float(losses.max()) if case.exact else math.inf
    else:
        low, high = float(losses.min()) if case.exact else -math.inf, mean
    assert low - slack <= value <= high + slack, (
        f"side={case.side!r}, exact={case.exact}: expected a risk in [{low}, {high}], received {value}"
    )


@few_examples
@given(_SEEDS, st.floats(-100, 100))
def follows_a_shift(case: RiskCase, seed: int, shift: float) -> None:
    """risk(l + c) = risk(l) + c."""
    losses, inputs = case.losses(7, seed=seed), case.groups(7, seed=seed)
    moved, expected = case.build()(losses + shift, **inputs), case.build()(losses, **inputs) + shift
    assert_same(moved, expected, f"risk of losses + {shift}, and risk + {shift}", rtol=1e-8, atol=1e-8)


def does_not_depend_on_the_order(case: RiskCase) -> None:
    """Shuffled samples have the same risk and the same weights."""
    risk, inputs = case.build(), {"losses": case.losses(9), "weight": case.weight(9), **case.groups(9)}
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = {name: x[order] for name, x in inputs.items()}
    assert_same(risk(**shuffled), risk(**inputs), "risk of samples in another order", rtol=1e-10, atol=1e-10)
    actual, expected = risk.weights(**shuffled), risk.weights(**inputs)[order]
    assert_same(actual, expected, "weights of samples in another order", rtol=1e-8, atol=1e-10)


@few_examples
@given(_SEEDS, st.booleans())
def has_weights_that_are_its_gradient(case: RiskCase, seed: int, weighted: bool) -> None:
    """They sum to one, are never negative (more loss is never less risk), and nothing is proposed for them."""
    losses, inputs = case.losses(9, seed=seed), case.groups(9, seed=seed)
    inputs |= {"weight": case.weight(9, seed=seed)} if weighted else {}
    risk = case.build()
    weights = risk.weights(losses, **inputs)
    assert not any(staged.pending for staged in staged_modules(risk.modules()))
    assert not weights.requires_grad
    assert (weights >= 0).all(), f"expected more loss to be no less risk, received weights {weights}"
    assert_same(weights.sum(), torch.ones_like(losses[0]), "sum of the weights", rtol=1e-7, atol=1e-7)
    _, gradient = _differentiated(risk, losses, **inputs)
    assert_same(gradient, weights, "gradient of the risk, and the weights", rtol=1e-8, atol=1e-10)


def has_the_gradient_of_its_value(case: RiskCase) -> None:
    """Checked by finite differences in float64, in evaluation: while it trains, an adversary's memory stands still."""
    inputs = case.groups(7) | {"weight": case.weight(7)}
    losses = case.losses(7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: case.build().eval()(x, **inputs), (losses,))


def counts_a_weight_of_two_as_two_samples(case: RiskCase) -> None:
    """Weights are numbers of samples, up to a factor."""
    inputs = {"losses": case.losses(6), **case.groups(6)}
    twice = torch.arange(6) % 2 == 0
    doubled = case.build()(**{name: torch.cat([x, x[twice]]) for name, x in inputs.items()})
    value = case.build()(**inputs, weight=1.0 + twice.double())
    what = "risk of samples of weight 2, and of each of them twice"
    assert_same(value, doubled, what, rtol=1e-9, atol=1e-9)
    halved = case.build()(**inputs, weight=0.5 + 0.5 * twice.double())
    assert_same(halved, value, "risk of half the weights, and of the weights", rtol=1e-12, atol=1e-12)


def leaves_samples_of_no_weight_inert(case: RiskCase) -> None:
    """No influence and no gradient, whatever they hold."""
    losses, inputs = case.losses(8), case.groups(8)
    keep = torch.arange(8) != 3
    reference = case.build()(losses[keep], **{name: x[keep] for name, x in inputs.items()})
    inputs["weight"] = keep.double()
    for junk in (math.nan, math.inf, -math.inf, 1e30):
        losses[3], risk = junk, case.build()
        value, gradient = _differentiated(risk, losses, **inputs)
        what = f"risk with a sample of weight 0 that holds {junk}, and without it"
        assert_same(value, reference, what, rtol=1e-10, atol=1e-10)
        assert gradient[3] == 0
        assert gradient.isfinite().all()
        assert risk.weights(losses, **inputs)[3] == 0


def gives_nothing_for_nothing(case: RiskCase) -> None:
    """No samples, or none that counts: exactly 0 with a graph, no gradient, and nothing to remember."""
    for n in (0, 5):
        risk, inputs = case.build(), case.groups(n) | {"weight": torch.zeros(n)}
        before = state_of(risk)
        x = torch.full((n,), math.nan, dtype=torch.float64, requires_grad=True)
        value = risk(x, **inputs)
        assert value == 0
        value.backward()
        assert x.grad is not None
        assert all(p.grad is None or not p.grad.any() for p in (x, *risk.parameters()))
        assert not risk.weights(x, **inputs).any()
        _commit(risk)
        counters = {name: value for name, value in risk.state_dict().items() if name.endswith("steps")}
        assert_unchanged(risk, before | counters, "expected nothing to be remembered of no samples")


@few_examples
@given(_SEEDS)
def survives_large_losses(case: RiskCase, seed: int) -> None:
    """Losses of +-1e6 in float32 give finite numbers and gradients."""
    x, risk = (1e6 * case.losses(9, seed=seed).sign().float()).requires_grad_(), case.build()
    value = risk(x, **case.groups(9, seed=seed))
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert all(p.grad.isfinite().all() for p in (x, *risk.parameters()) if p.grad is not None)


def ignores_autocast(case: RiskCase) -> None:
    """It is computed in float32 or better."""
    losses, risk = case.losses(8).float(), case.build()
    plain = risk(losses, **case.groups(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(risk(losses, **case.groups(8)), plain, "under autocast")


def forward_writes_nothing(case: RiskCase) -> None:
    """Forward, repeated, with and without gradients, in training and evaluation: the state stays as it was."""
    risk = case.build()
    assert_writes_nothing(risk, case.losses(6), **case.groups(6))
    memory = staged_modules(risk.modules())
    standalone = isinstance(risk, StandaloneRisk) or not memory
    assert standalone, "expected a risk with memory to derive from dro_temp.risks.StandaloneRisk"
    for staged in memory:
        staged.discard()
    risk(case.losses(6), **case.groups(6))
    with torch.no_grad():
        risk.train()(case.losses(6), **case.groups(6))
    assert not any(staged.pending for staged in memory)


def survives_saving(case: RiskCase) -> None:
    """After some steps, a reloaded risk gives the same numbers bit for bit."""
    risk = case.build()
    for seed in range(3):
        risk(case.losses(8, seed=seed).requires_grad_(), **case.groups(8, seed=seed)).backward()
        _commit(risk)
    loaded = case.build()
    loaded.load_state_dict(risk.state_dict())
    losses, groups = case.losses(8, seed=9), case.groups(8, seed=9)
    assert_same(loaded(losses, **groups), risk(losses, **groups), "after load_state_dict")


def compiles_whole(case: RiskCase) -> None:
    """Forward and backward in one graph, with the same numbers."""
    inputs = case.groups(8) | {"weight": case.weight(8)}
    # "aot_eager" traces both directions but generates no code: no C++ compiler is needed.
    compiled = torch.compile(case.build(), fullgraph=True, backend="aot_eager")
    actual, expected = (_differentiated(risk, case.losses(8), **inputs) for risk in (compiled, case.build()))
    assert_same(actual, expected, "compiled risk and its gradient", rtol=1e-7, atol=1e-7)
    torch.compiler.reset()


def _commit(risk: SampleRisk) -> None:
    if isinstance(risk, StandaloneRisk):
        risk.commit()
    assert not any(staged.pending for staged in staged_modules(risk.modules()))
