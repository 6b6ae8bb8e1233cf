"""What the value and the weights of every risk over samples must be."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dro_temp.testing import _risk_state
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
    *_risk_state.CONTRACTS,
)
