"""Means of exponentials, and what rests on them, beside outliers and infinities: against exact arithmetic."""

import decimal
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dro_temp as dt
from dro_temp import functional as F

INF, NAN = math.inf, math.nan
PRECISE = decimal.Context(prec=60, Emin=-(10**12), Emax=10**12)


def _exact(x: torch.Tensor, weight: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The log of the weighted mean of exponentials, and its gradient, with 60 digits."""
    pairs = [
        (decimal.Decimal(a), decimal.Decimal(w))
        for a, w in zip(x.tolist(), weight.tolist(), strict=True)
        if w > 0
    ]
    top = max(a for a, _ in pairs)
    terms = [PRECISE.multiply(w, PRECISE.exp(PRECISE.subtract(a, top))) for a, w in pairs]
    total, mass = sum(terms), sum(w for _, w in pairs)
    value = float(PRECISE.add(top, PRECISE.ln(PRECISE.divide(total, mass))))
    p = iter([float(PRECISE.divide(term, total)) for term in terms])
    return value, torch.tensor([next(p) if w > 0 else 0.0 for w in weight.tolist()], dtype=torch.float64)


# The reference adds 1 in sixty digits: an exponent of 1e-200 would be lost there, and not in what is tested.
small_ones = st.floats(-1e-6, 1e-6).map(lambda x: x if abs(x) > 1e-30 else 0.0)
exponents = st.one_of(
    small_ones, st.floats(-1, 1), st.floats(-100, 100), st.floats(-1e8, 1e8), st.just(-1e30)
)
weights = st.one_of(st.just(0.0), st.floats(1e-3, 1.0), st.floats(1e-12, 1e-9))


@given(
    st.lists(st.tuples(exponents, weights), min_size=1, max_size=8),
    st.sampled_from([0.0, 1e6, -40.0]),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([NAN, INF, -INF]),
)
def test_the_log_of_a_mean_of_exponentials(pairs, offset, dtype, where_weight_is_zero):
    x, weight = (torch.tensor(side, dtype=dtype) for side in zip(*pairs, strict=True))
    x = x + offset
    if not bool((weight > 0).any()):
        weight = torch.ones_like(weight)
    value, p = _exact(x, weight)
    held = x.masked_fill(weight == 0, where_weight_is_zero).requires_grad_()
    ours = F.weighted_log_mean_exp(held, weight)
    ours.backward()
    share = (weight / weight.sum()).double()
    # What rounding each exponent and each sum once would do to the value, and no more than eight times that.
    scale = (p * x.double().abs()).sum() + abs(value) + (share * x.double().abs().clamp(max=1.0)).sum()
    assert abs(ours.item() - value) <= 16 * torch.finfo(dtype).eps * scale.item()
    torch.testing.assert_close(
        held.grad.double(), p, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-7
    )
    assert bool((held.grad[weight == 0] == 0).all())


@given(st.lists(st.tuples(exponents, weights), min_size=1, max_size=6), st.booleans())
def test_infinite_exponents_are_the_limit(pairs, upwards):
    x, weight = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    weight = weight + 0.5
    outlier = torch.tensor([INF if upwards else -INF], dtype=torch.float64)
    both = torch.cat([x, outlier]).requires_grad_()
    value = F.weighted_log_mean_exp(both, torch.cat([weight, torch.ones(1)]))
    value.backward()
    if upwards:
        assert value.item() == INF
        assert both.grad.tolist() == [0.0] * len(x) + [1.0]
    else:
        rest, p = _exact(x, weight)
        expected = rest + math.log(weight.sum().item() / (weight.sum().item() + 1.0))
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(both.grad, torch.cat([p, torch.zeros(1)]), rtol=1e-9, atol=1e-12)


def test_all_infinite():
    for sign in (1.0, -1.0):
        x = torch.tensor([sign * INF, sign * INF], requires_grad=True)
        value = F.weighted_log_mean_exp(x, torch.tensor([1.0, 3.0]))
        value.backward()
        assert value.item() == sign * INF
        assert x.grad.tolist() == [0.25, 0.75]
    assert math.isnan(F.weighted_log_mean_exp(torch.tensor([0.0, NAN, INF])).item())


# Risks ------------------------------------------------------------------------------------------------------

ORDINARY = (1.0, 2.0, 0.5)


def _value_and_gradient(risk, losses, dtype=torch.float32):
    x = torch.tensor(losses, dtype=dtype, requires_grad=True)
    value = risk(x)
    (gradient,) = torch.autograd.grad(value, x)
    return value.item(), gradient.tolist()


@pytest.mark.parametrize("outlier", [1e4, 1e8, 3e38, INF])
def test_a_negative_tilt_leaves_an_outlier_out(outlier):
    value, gradient = _value_and_gradient(dt.TiltedRisk(-1.0), [*ORDINARY, outlier])
    assert value == pytest.approx(1.28216, abs=1e-5)
    assert gradient == pytest.approx([0.3315, 0.1220, 0.5465, 0.0], abs=1e-4)


@pytest.mark.parametrize("outlier", [-1e4, -1e8, -3e38, -INF])
@pytest.mark.parametrize(
    "make_tau", [dt.ConstantTemperature, lambda t: dt.LearnableTemperature(t, tau_max=9.0)]
)
def test_a_kl_ball_at_a_given_tau_leaves_a_very_small_loss_out(outlier, make_tau):
    risk = dt.KLRisk(0.1, tau=make_tau(0.5))
    value, gradient = _value_and_gradient(risk, [*ORDINARY, outlier])
    exact = 0.5 * (math.log(sum(math.exp(x / 0.5) for x in ORDINARY) / 4) + 0.1)
    assert value == pytest.approx(exact, abs=1e-5)
    assert gradient[3] == 0.0
    assert sum(gradient) == pytest.approx(1.0, abs=1e-5)
    for parameter in risk.parameters():
        losses = torch.tensor([*ORDINARY, outlier])
        (slope,) = torch.autograd.grad(risk(losses), parameter)
        assert bool(slope.isfinite().all())


def _best(risk, losses=ORDINARY):
    return dt.OptimisticRisk(risk)(torch.tensor(losses, dtype=torch.float64)).item()


# What the ally makes of the others, once it has spent a part of the radius on leaving the outlier out.
BEST_CASES = {
    "cvar": (dt.CVaRRisk(0.5), 0.75),
    "kl": (dt.KLRisk(0.7), _best(dt.KLRisk(0.7 - math.log(4 / 3)))),
    "chi": (dt.ChiSquareRisk(0.4), _best(dt.ChiSquareRisk((0.75 * 1.8 - 1) / 2))),
    "tilted": (dt.TiltedRisk(1.0), 1.28216),
}


@pytest.mark.parametrize("name", BEST_CASES)
def test_the_best_case_leaves_an_outlier_out(name):
    inner, right = BEST_CASES[name]
    risk = dt.OptimisticRisk(inner)
    _, usual = _value_and_gradient(risk, [*ORDINARY, 1e3])
    for outlier in (1e6, 1e20, 1e30, INF):
        for dtype in (torch.float32, torch.float64):
            value, gradient = _value_and_gradient(risk, [*ORDINARY, outlier], dtype)
            assert value == pytest.approx(right, rel=1e-5)
            assert gradient == pytest.approx(usual, abs=1e-5)
            assert gradient[3] == 0.0


@pytest.mark.parametrize(
    "risk",
    [
        dt.risks.MeanRisk(),
        dt.CVaRRisk(0.5),
        dt.KLRisk(0.5),
        dt.KLRisk(0.5, tau=dt.LearnableTemperature(1.0, tau_max=9.0)),
        dt.ChiSquareRisk(0.3),
        dt.TiltedRisk(1.0),
        dt.TiltedRisk(1.0, estimator=dt.LogMovingAverage(1)),
        dt.KLRisk(0.5, tau=dt.ConstantTemperature(1.0), estimator=dt.LogMovingAverage(1)),
    ],
    ids=repr,
)
def test_an_infinite_loss_is_an_infinite_risk_with_a_finite_gradient(risk):
    value, gradient = _value_and_gradient(risk, [*ORDINARY, INF])
    assert value == INF
    assert all(map(math.isfinite, gradient))
    for parameter in risk.parameters():
        (slope,) = torch.autograd.grad(risk(torch.tensor([*ORDINARY, INF])), parameter)
        assert bool(slope.isfinite().all())


def test_a_group_without_weight_may_be_infinite():
    risk = dt.GroupRisk(2, step_size=1.0)
    risk.adversary.log_q.copy_(torch.tensor([0.0, -1e4]))
    value = risk(torch.tensor([1.0, INF]), group=torch.tensor([0, 1]))
    assert value.item() == 1.0


@pytest.mark.parametrize("value", [INF, -INF])
def test_one_sample_seen_twice_may_be_infinite(value):
    index, log_g = torch.tensor([3, 3, 1]), torch.tensor([value, 0.0, 2.0])
    combined = F.combine_duplicates(index, log_g)
    expected = INF if value > 0 else -math.log(2)
    assert combined.tolist() == pytest.approx([expected, expected, 2.0])


# The compositional gradient ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_jump_of_margins_leaves_a_held_mean_finite(dtype):
    """Unit vectors at tau = 0.01: log u may go from -200 to 200, and SCENT's gamma is then next to nothing."""
    estimator = dt.Scent(1)
    loss = dt.KLRobustLoss(0.1, estimator=estimator)

    def step(margin):
        scores = torch.tensor([[0.0, margin, margin]], dtype=dtype, requires_grad=True)
        rows = dt.Rows(scores, torch.tensor([0]), index=torch.tensor([0]), target_in_support=False)
        tau = torch.full((1,), 0.01, dtype=dtype, requires_grad=True)
        value = loss(rows, tau)
        value.sum().backward()
        estimator.commit()
        return value.item(), scores.grad, tau.grad

    value, _, _ = step(-2.0)
    assert value == pytest.approx(0.01 * (-200 + 0.1), rel=1e-5)
    value, gradient, slope = step(2.0)
    held = F.log_mirror_average(torch.tensor([-200.0]), torch.tensor([200.0]), 10.0).item()
    assert value == pytest.approx(0.01 * (held + 0.1), rel=1e-5)
    assert math.isfinite(gradient.norm().item())
    assert math.isfinite(slope.item())
    assert gradient[0, 0] < 0 < gradient[0, 1]  # the target's score is to rise


@pytest.mark.parametrize("log_u", [-3.0, 0.0, 5.0])
def test_a_held_value_is_exact_however_large_the_ratio(log_u):
    log_g = torch.tensor([log_u + 15.0], requires_grad=True)
    held = torch.tensor([log_u])
    value = F.compositional_log_mean(log_g, held)
    (gradient,) = torch.autograd.grad(value, log_g)
    assert torch.equal(value, held)
    assert gradient.item() == pytest.approx(math.exp(15.0), rel=1e-5)
