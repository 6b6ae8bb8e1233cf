"""What every risk over samples must do."""

import copy
import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dro_temp.interfaces import SampleRisk, staged_modules
from dro_temp.testing._cases import RiskCase

_some = settings(max_examples=20, deadline=None)


def gives_one_number(case: RiskCase) -> None:
    """A finite scalar, float32 or better also from low precision; for few samples and more."""
    for n in (case.smallest, case.smallest + 1, 9):
        risk = case.build()(case.losses(n), **case.given(n))
        assert risk.shape == ()
        assert risk.dtype == torch.float64
        assert bool(risk.isfinite())
    for dtype in (torch.bfloat16, torch.float16):
        low = case.losses(9).to(dtype)
        found = case.build()(low, **case.given(9))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, case.build()(low.float(), **case.given(9)), rtol=0, atol=0)


def gives_a_constant_itself(case: RiskCase) -> None:
    """Losses that are all alike have that risk; a bound of the risk is no lower."""
    for constant in (0.0, -3.7, 1e5):
        losses = torch.full((8,), constant, dtype=torch.float64)
        found = case.build()(losses, **case.given(8))
        if case.exact:
            torch.testing.assert_close(found, losses[0], rtol=1e-9, atol=1e-9)
        else:
            assert found >= constant - 1e-9 * abs(constant)


def lies_between_mean_and_extreme(case: RiskCase) -> None:
    """From the mean to the greatest loss, or to the least one; in evaluation, where nothing is remembered."""

    @_some
    @given(st.integers(0, 999), st.floats(0.01, 100), st.booleans())
    def check(seed: int, scale: float, weighted: bool) -> None:
        losses, given = case.losses(9, seed=seed, scale=scale), case.given(9, seed=seed)
        weight = given["weight"] = case.weight(9, seed=seed) if weighted else torch.ones_like(losses)
        found, mean = case.build().eval()(losses, **given), (weight * losses).sum() / weight.sum()
        slack = 1e-9 * scale
        if case.side == "worst":
            assert found >= mean - slack
            assert not case.exact or found <= losses.max() + slack
        else:
            assert found <= mean + slack
            assert not case.exact or found >= losses.min() - slack

    check()


def follows_a_shift(case: RiskCase) -> None:
    """risk(l + c) = risk(l) + c."""

    @_some
    @given(st.integers(0, 999), st.floats(-100, 100))
    def check(seed: int, shift: float) -> None:
        losses, given = case.losses(7, seed=seed), case.given(7, seed=seed)
        moved = case.build()(losses + shift, **given)
        torch.testing.assert_close(moved, case.build()(losses, **given) + shift, rtol=1e-8, atol=1e-8)

    check()


def does_not_depend_on_the_order(case: RiskCase) -> None:
    """Shuffled samples have the same risk and the same weights."""
    losses, given = case.losses(9), case.given(9) | {"weight": case.weight(9)}
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    shuffled = {name: x[order] for name, x in given.items()}
    risk = case.build()
    torch.testing.assert_close(risk(losses[order], **shuffled), risk(losses, **given), rtol=1e-10, atol=1e-10)
    weights = risk.weights(losses, **given)
    torch.testing.assert_close(risk.weights(losses[order], **shuffled), weights[order], rtol=1e-8, atol=1e-10)


def has_weights_that_are_its_gradient(case: RiskCase) -> None:
    """They sum to one, are never negative (more loss is never less risk), and nothing is proposed for them."""

    @_some
    @given(st.integers(0, 999), st.booleans())
    def check(seed: int, weighted: bool) -> None:
        losses, given = case.losses(9, seed=seed), case.given(9, seed=seed)
        given |= {"weight": case.weight(9, seed=seed)} if weighted else {}
        risk = case.build()
        weights = risk.weights(losses, **given)
        assert not risk.pending
        assert not weights.requires_grad
        assert bool((weights >= 0).all())
        torch.testing.assert_close(weights.sum(), torch.ones_like(losses[0]))
        x = losses.requires_grad_()
        (gradient,) = torch.autograd.grad(risk(x, **given), x)
        torch.testing.assert_close(gradient, weights, rtol=1e-8, atol=1e-10)

    check()


def has_the_gradient_of_its_value(case: RiskCase) -> None:
    """Checked by finite differences in float64, in evaluation: while it trains, an adversary's memory stands still."""
    given = case.given(7) | {"weight": case.weight(7)}
    losses = case.losses(7).requires_grad_()

    def value(losses: Tensor) -> Tensor:
        found: Tensor = case.build().eval()(losses, **given)
        return found

    assert torch.autograd.gradcheck(value, (losses,))


def counts_a_weight_of_two_as_two_samples(case: RiskCase) -> None:
    """Weights are numbers of samples, up to a factor."""
    losses, given = case.losses(6), case.given(6)
    twice = torch.arange(6) % 2 == 0
    doubled = torch.cat([losses, losses[twice]])
    more = {name: torch.cat([x, x[twice]]) for name, x in given.items()}
    found = case.build()(losses, **given, weight=1.0 + twice.double())
    torch.testing.assert_close(found, case.build()(doubled, **more), rtol=1e-9, atol=1e-9)
    halved = case.build()(losses, **given, weight=0.5 + 0.5 * twice.double())
    torch.testing.assert_close(halved, found, rtol=1e-12, atol=1e-12)


def leaves_samples_of_no_weight_inert(case: RiskCase) -> None:
    """No influence and no gradient, whatever they hold."""
    losses, given = case.losses(8), case.given(8)
    keep = torch.arange(8) != 3
    reference = case.build()(losses[keep], **{name: x[keep] for name, x in given.items()})
    for junk in (math.nan, math.inf, -math.inf, 1e30):
        x = losses.clone()
        x[3] = junk
        x.requires_grad_()
        risk = case.build()
        found = risk(x, **given, weight=keep.double())
        found.backward()
        torch.testing.assert_close(found.detach(), reference, rtol=1e-10, atol=1e-10)
        assert x.grad is not None
        assert x.grad[3] == 0
        assert bool(x.grad.isfinite().all())
        assert risk.weights(x, **given, weight=keep.double())[3] == 0


def gives_nothing_for_nothing(case: RiskCase) -> None:
    """No samples, or none that counts: exactly 0 with a graph, no gradient, and nothing to remember."""
    for n in (0, 5):
        risk = case.build()
        before = copy.deepcopy(risk.state_dict())
        x = torch.full((n,), math.nan, dtype=torch.float64, requires_grad=True)
        found = risk(x, **case.given(n), weight=torch.zeros(n))
        assert found == 0
        found.backward()
        assert x.grad is not None
        assert bool((x.grad == 0).all())
        assert all(p.grad is None or bool((p.grad == 0).all()) for p in risk.parameters())
        assert bool((risk.weights(x, **case.given(n), weight=torch.zeros(n)) == 0).all())
        _commit(risk)
        _is_unchanged(risk, before, but_for=("steps",))


def survives_large_losses(case: RiskCase) -> None:
    """Losses of +-1e6 in float32 give finite numbers and gradients."""

    @_some
    @given(st.integers(0, 999))
    def check(seed: int) -> None:
        x = (1e6 * case.losses(9, seed=seed).sign().float()).requires_grad_()
        risk = case.build()
        found = risk(x, **case.given(9, seed=seed))
        found.backward()
        assert bool(found.isfinite())
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        assert all(bool(p.grad.isfinite().all()) for p in risk.parameters() if p.grad is not None)

    check()


def forward_writes_nothing(case: RiskCase) -> None:
    """Forward, repeated, with and without gradients, in training and evaluation: the state stays as it was."""
    risk = case.build()
    losses, given = case.losses(6), case.given(6)
    before = copy.deepcopy(risk.state_dict())
    first, second = (risk(losses, **given) for _ in range(2))
    assert torch.equal(first, second)
    risk.discard()
    with torch.no_grad():
        risk(losses, **given)
    risk.eval()(losses, **given)
    assert not risk.pending
    _is_unchanged(risk, before)


def survives_saving(case: RiskCase) -> None:
    """After some steps, a reloaded risk gives the same numbers bit for bit."""
    risk = case.build()
    for seed in range(3):
        risk(case.losses(8, seed=seed).requires_grad_(), **case.given(8, seed=seed)).backward()
        _commit(risk)
    loaded = case.build()
    loaded.load_state_dict(risk.state_dict())
    losses, given = case.losses(8, seed=9), case.given(8, seed=9)
    assert torch.equal(loaded(losses, **given), risk(losses, **given))


def ignores_autocast(case: RiskCase) -> None:
    """It is computed in float32 or better."""
    losses, risk = case.losses(8).float(), case.build()
    plain = risk(losses, **case.given(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(risk(losses, **case.given(8)), plain)


def compiles_whole(case: RiskCase) -> None:
    """Forward and backward in one graph, with the same numbers."""
    found = []
    for compiled in (False, True):
        risk = case.build()
        x = case.losses(8).requires_grad_()
        given = case.given(8) | {"weight": case.weight(8)}
        # "aot_eager" traces both directions but generates no code: no C++ compiler is needed.
        call: Any = torch.compile(risk, fullgraph=True, backend="aot_eager") if compiled else risk
        value = call(x, **given)
        value.backward()
        found.append((value.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1])
    torch.compiler.reset()


def _commit(risk: SampleRisk) -> None:
    risk.commit()
    assert not any(staged.pending for staged in staged_modules(risk.modules()))


def _is_unchanged(risk: SampleRisk, before: dict[str, Tensor], but_for: tuple[str, ...] = ()) -> None:
    for name, value in risk.state_dict().items():
        assert name.endswith(but_for or ("\0",)) or torch.equal(value, before[name]), name


CONTRACTS = (
    gives_one_number,
    gives_a_constant_itself,
    lies_between_mean_and_extreme,
    follows_a_shift,
    does_not_depend_on_the_order,
    has_weights_that_are_its_gradient,
    has_the_gradient_of_its_value,
    counts_a_weight_of_two_as_two_samples,
    leaves_samples_of_no_weight_inert,
    gives_nothing_for_nothing,
    survives_large_losses,
    forward_writes_nothing,
    survives_saving,
    ignores_autocast,
    compiles_whole,
)
