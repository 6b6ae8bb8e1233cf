"""The theorems of KL-constrained DRO, against independent solvers and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from strategies import dtypes, margins, masked_margins, scales, seeds, taus

import dro_temp as dt
from dro_temp import functional as F

float64 = torch.float64


def _primal(h, rho, tau_min):
    """max_p p.h - tau_min KL(p||U) subject to KL(p||U) <= rho, by scipy over the simplex."""
    import numpy as np

    m = len(h)
    h = h.numpy()

    def kl(p):
        return float((p * np.log(np.maximum(m * p, 1e-300))).sum())

    best = -np.inf
    # Several starts: SLSQP is a local method, though the problem is convex.
    for sharp in (0.0, 0.3, 1.0):
        start = np.exp(sharp * (h - h.max()) / max(h.std(), 1e-9))
        done = minimize(
            lambda p: -(p @ h) + tau_min * kl(p),
            start / start.sum(),
            bounds=[(1e-12, 1)] * m,
            constraints=[
                {"type": "eq", "fun": lambda p: p.sum() - 1},
                {"type": "ineq", "fun": lambda p: rho - kl(p)},
            ],
            method="SLSQP",
            options={"maxiter": 500, "ftol": 1e-13},
        )
        if kl(done.x) <= rho + 1e-6 and abs(done.x.sum() - 1) < 1e-8:
            best = max(best, -done.fun)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_strong_duality_against_an_independent_primal_solver(seed):
    g = torch.Generator().manual_seed(seed)
    m = 3 + seed
    h = torch.randn(1, m, generator=g, dtype=float64)
    tau_min = 0.05
    rho = (0.1 + 0.1 * seed) * math.log(m)
    tau = F.optimal_tau(h, rho=rho, tau_min=tau_min, tau_max=1e3)
    dual = F.kl_dual(h, tau, rho=rho) - tau_min * rho
    assert dual.item() == pytest.approx(_primal(h[0], rho, tau_min), abs=2e-6)


@given(margins(), taus, seeds, st.floats(0.01, 0.95))
def test_weak_duality_for_any_temperature_and_any_distribution_in_the_ball(h, tau, seed, share):
    n, m = h.shape
    tau_min, rho = min(tau, 0.05), share * math.log(m)
    p = torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=float64).softmax(1)
    uniform = torch.full_like(p, 1 / m)
    # Shrink towards uniform until the distribution is inside the ball.
    for _ in range(60):
        kl = (p * (m * p).log()).sum(1)
        p = torch.where((kl > rho)[:, None], 0.7 * p + 0.3 * uniform, p)
    kl = (p * (m * p).log()).sum(1)
    primal = (p * h).sum(1) - tau_min * kl
    dual = F.kl_dual(h, torch.full((n,), tau, dtype=float64), rho=rho) - tau_min * rho
    assert bool((primal <= dual + 1e-9 * h.abs().amax(1) + 1e-9).all())


@given(margins(), st.floats(0.05, 0.9))
def test_the_optimum_is_a_lower_bound_over_temperatures(h, share):
    """Any predictor's loss minus the optimum's is never negative: the amortisation gap."""
    rho = share * math.log(h.shape[1])
    best = F.optimal_tau(h, rho=rho, tau_min=1e-3, tau_max=1e3)
    at_best = F.kl_dual(h, best, rho=rho)
    for tau in (1e-3, 0.01, 0.1, 1.0, 10.0, 1e3):
        other = F.kl_dual(h, torch.full_like(best, tau), rho=rho)
        assert bool((at_best <= other + 1e-9 * (1 + other.abs())).all())


@given(margins(), st.floats(0.05, 0.9))
@settings(max_examples=30)
def test_optimal_tau_agrees_with_scipy(h, share):
    rho = share * math.log(h.shape[1])
    tau = F.optimal_tau(h, rho=rho, tau_min=0.01, tau_max=100.0)
    for row, t in zip(h, tau, strict=True):

        def value(log_tau, row=row):
            return F.kl_dual(row[None], torch.tensor([math.exp(log_tau)], dtype=float64), rho=rho).item()

        found = minimize_scalar(
            value, bounds=(math.log(0.01), math.log(100.0)), method="bounded", options={"xatol": 1e-10}
        )
        at_ours = value(math.log(t.item()))
        assert at_ours <= found.fun + 1e-9 * (1 + abs(found.fun))


@given(masked_margins(), st.floats(0.05, 0.9))
def test_at_an_inner_optimum_kl_equals_rho(case, share):
    h, mask = case
    rho = share * math.log(2)
    tau = F.optimal_tau(h, rho=rho, tau_min=1e-4, tau_max=1e5, mask=mask)
    kl = F.kl_divergence(h, tau, mask)
    inner = (tau > 1e-4) & (tau < 1e5)
    torch.testing.assert_close(kl[inner], torch.full_like(kl[inner], rho), rtol=1e-9, atol=1e-9)


def test_optimal_tau_stops_at_its_bounds():
    h = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]], dtype=float64)
    assert F.optimal_tau(h[:1], rho=1e-9, tau_min=0.1, tau_max=2.0).item() == 2.0  # wants infinity
    assert F.optimal_tau(h[:1], rho=1.0, tau_min=0.9, tau_max=2.0).item() == 0.9  # wants less
    assert F.optimal_tau(h[1:], rho=0.5, tau_min=0.1, tau_max=2.0).item() == pytest.approx(0.1)


def test_optimal_tau_has_no_gradient():
    h = torch.randn(2, 5, dtype=float64, requires_grad=True)
    assert not F.optimal_tau(h, rho=0.5, tau_min=0.1, tau_max=2.0).requires_grad


@given(margins())
def test_high_temperature_gives_the_mean_and_low_the_maximum(h):
    n = h.shape[0]
    scale = max(h.abs().max().item(), 1e-3)
    hot = F.kl_dual(h, torch.full((n,), 1e7 * scale, dtype=float64), rho=0.0)
    cold = F.kl_dual(h, torch.full((n,), 1e-7 * scale, dtype=float64), rho=0.0)
    torch.testing.assert_close(hot, h.mean(1), rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(cold, h.amax(1), rtol=1e-5, atol=1e-5 * scale)


@given(margins(), taus, taus, st.floats(0, 1))
def test_convex_in_tau(h, first, second, share):
    def at(t):
        return F.kl_dual(h, torch.full((h.shape[0],), t, dtype=float64), rho=0.7)

    middle = at(share * first + (1 - share) * second)
    chord = share * at(first) + (1 - share) * at(second)
    assert bool((middle <= chord + 1e-8 * (1 + chord.abs())).all())


@given(margins(), taus)
def test_derivative_in_tau_is_rho_minus_kl_and_in_margins_the_worst_case(h, tau):
    t = torch.full((h.shape[0],), tau, dtype=float64, requires_grad=True)
    leaf = h.clone().requires_grad_()
    F.kl_dual(leaf, t, rho=0.7).sum().backward()
    kl = F.kl_divergence(h, t.detach())
    torch.testing.assert_close(t.grad, 0.7 - kl, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(leaf.grad, F.kl_weights(h, t.detach()), rtol=1e-9, atol=1e-12)


@given(masked_margins(), taus)
def test_kl_lies_between_zero_and_log_m_and_falls_with_tau(case, tau):
    h, mask = case
    t = torch.full((h.shape[0],), tau, dtype=float64)
    kl, hotter = F.kl_divergence(h, t, mask), F.kl_divergence(h, 1.5 * t, mask)
    assert bool((kl >= -1e-9).all())
    assert bool((kl <= mask.sum(1).log() + 1e-9).all())
    assert bool((hotter <= kl + 1e-9).all())


@given(masked_margins(), taus)
def test_a_mask_is_the_same_as_leaving_columns_out(case, tau):
    h, mask = case
    t = torch.full((h.shape[0],), tau, dtype=float64)
    masked = F.kl_dual(h, t, rho=0.3, mask=mask)
    for i in range(len(h)):
        kept = h[i][mask[i]][None]
        torch.testing.assert_close(masked[i], F.kl_dual(kept, t[:1], rho=0.3)[0])
        torch.testing.assert_close(F.kl_weights(h, t, mask)[i][mask[i]], F.kl_weights(kept, t[:1])[0])
    assert bool((F.kl_weights(h, t, mask)[~mask] == 0).all())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_gradcheck(masked, held):
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 5, generator=g, dtype=float64, requires_grad=True)
    tau = (0.5 + torch.rand(3, generator=g, dtype=float64)).requires_grad_()
    target = torch.tensor([0, 4, 2])
    mask = torch.ones(3, 5, dtype=torch.bool).scatter(1, target[:, None], False) if masked else None

    if not held:

        def value(scores, tau):
            return F.kl_dual(F.margins(scores, target), tau, rho=0.4, mask=mask)

        assert torch.autograd.gradcheck(value, (scores, tau))
        return

    # With a held estimate u the value is flat in the scores by design; its gradient is that of
    # tau (log u + g / u - 1 + rho) with u fixed.
    log_u = torch.randn(3, generator=g, dtype=float64)
    ours = torch.autograd.grad(
        F.kl_dual(F.margins(scores, target), tau, rho=0.4, mask=mask, log_u=log_u).sum(), (scores, tau)
    )
    h = F.margins(scores, target)
    mean = (h / tau[:, None]).exp()
    mean = (mean * mask).sum(1) / mask.sum(1) if masked else mean.mean(1)
    ratio = mean / log_u.exp()
    by_hand = (tau * (log_u + 0.4) + tau.detach() * ratio).sum()
    theirs = torch.autograd.grad(by_hand, (scores, tau))
    # only the factor in front of the ratio is detached above: the ratio itself still carries dtau
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-10, atol=1e-12)


def test_an_empty_support_is_minus_infinity_without_gradient():
    x = torch.randn(2, 3, dtype=float64, requires_grad=True)
    mask = torch.tensor([[False] * 3, [True] * 3])
    result = F.log_mean_exp(x, mask)
    assert result[0].item() == -math.inf
    result[1].backward()
    assert bool(x.grad.isfinite().all())
    assert bool((x.grad[0] == 0).all())
    assert F.kl_divergence(x.detach(), torch.ones(2, dtype=float64), mask)[0] == 0


def test_reaches_no_infinity_where_exponentials_do():
    h = torch.tensor([[0.0, 1e4, -1e4]])
    for tau in (0.005, 1.0):
        value = F.kl_dual(h, torch.tensor([tau]), rho=0.5)
        assert value.item() == pytest.approx(1e4 + tau * (0.5 - math.log(3)), rel=1e-5)
        assert F.kl_divergence(h, torch.tensor([tau])).item() == pytest.approx(math.log(3))


@given(seeds, dtypes, scales, taus, st.booleans())
def test_low_precision_scores_cost_no_more_than_their_own_rounding(seed, dtype, scale, tau, pairs):
    """The loss of scores in any precision is that of the same scores in float64, to float32 rounding."""
    g = torch.Generator().manual_seed(seed)
    scores = (scale * torch.randn(4, 9, generator=g)).to(dtype)
    target = torch.randint(9, (4,), generator=g)
    temperatures = torch.full((4,), tau, dtype=float64)

    def value(scores):
        return dt.KLRobustLoss(0.4)(dt.Rows(scores, target, target_in_support=not pairs), temperatures)

    exact, ours = value(scores.double()), value(scores)
    assert ours.dtype == (float64 if dtype == float64 else torch.float32)
    size = scores.double().abs().max() + tau * (math.log(9) + 0.4)
    assert bool(((ours.double() - exact).abs() <= 8 * torch.finfo(ours.dtype).eps * size).all())


def test_classifier_form_is_tempered_cross_entropy():
    """L = tau CE(z / tau, y) + (rho - log m) tau (MATHS: classifier and LM form)."""
    z = torch.randn(4, 7, dtype=float64)
    y, tau = torch.tensor([0, 3, 6, 3]), torch.rand(4, dtype=float64) + 0.5
    ours = F.kl_dual(F.margins(z, y), tau, rho=1.2)
    ce = torch.nn.functional.cross_entropy(z / tau[:, None], y, reduction="none")
    torch.testing.assert_close(ours, tau * ce + (1.2 - math.log(7)) * tau)
