"""Risks against independent solvers, in their limits, over steps, and with what does not fit."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, linprog, minimize

import dro_temp as dt
from dro_temp import functional as F

RADII = (0.01, 0.1, 0.5, 1.0)


def _losses(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _weight(n: int, seed: int) -> torch.Tensor:
    return 0.2 + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Independent solvers of the primal, over p ------------------------------------------------------------------


def _primal(losses, share, divergence, slope, rho) -> float:
    """max p.l over a ball, by SLSQP from the centre; its value is good to about its own ftol."""
    found = minimize(
        lambda p: -p @ losses,
        share,
        jac=lambda p: -losses,
        bounds=[(1e-12, 1.0)] * len(losses),
        constraints=[
            {"type": "eq", "fun": lambda p: p.sum() - 1.0, "jac": lambda p: np.ones_like(p)},
            {"type": "ineq", "fun": lambda p: rho - divergence(p), "jac": lambda p: -slope(p)},
        ],
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-13},
    )
    assert found.success, found.message
    return -found.fun


@pytest.mark.parametrize("rho", RADII)
@pytest.mark.parametrize("seed", range(4))
def test_the_kl_ball_against_a_solver(rho, seed):
    losses, weight = _losses(8, seed), _weight(8, seed)
    x, s = losses.numpy(), (weight / weight.sum()).numpy()
    expected = _primal(x, s, lambda p: (p * np.log(p / s)).sum(), lambda p: np.log(p / s) + 1.0, rho)
    assert dt.KLRisk(rho)(losses, weight=weight).item() == pytest.approx(expected, abs=2e-8)


@pytest.mark.parametrize("rho", RADII)
@pytest.mark.parametrize("seed", range(4))
def test_the_chi_square_ball_against_a_solver(rho, seed):
    losses, weight = _losses(8, seed), _weight(8, seed)
    x, s = losses.numpy(), (weight / weight.sum()).numpy()
    expected = _primal(x, s, lambda p: 0.5 * ((p / s - 1.0) ** 2 * s).sum(), lambda p: p / s - 1.0, rho)
    assert dt.ChiSquareRisk(rho)(losses, weight=weight).item() == pytest.approx(expected, abs=2e-8)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_cvar_against_a_linear_program(alpha, seed):
    losses, weight = _losses(8, seed), _weight(8, seed)
    share = (weight / weight.sum()).numpy()
    found = linprog(
        -losses.numpy(), A_eq=np.ones((1, 8)), b_eq=[1.0], bounds=[(0.0, s / alpha) for s in share]
    )
    assert dt.CVaRRisk(alpha)(losses, weight=weight).item() == pytest.approx(-found.fun, abs=1e-10)


@pytest.mark.parametrize("tilt", [-3.0, -0.2, 0.2, 3.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_tilted_mean_against_a_solver(tilt, seed):
    """The best p of p.l - KL(p || share) / tilt: a maximum for a positive tilt, a minimum for a negative one."""
    losses, weight = _losses(6, seed), _weight(6, seed)
    x, s, sign = losses.numpy(), (weight / weight.sum()).numpy(), math.copysign(1.0, tilt)
    found = minimize(
        lambda p: -sign * (p @ x - (p * np.log(p / s)).sum() / tilt),
        s,
        jac=lambda p: -sign * (x - (np.log(p / s) + 1.0) / tilt),
        hess=lambda p: np.diag(1.0 / p) / abs(tilt),
        bounds=Bounds(1e-12, 1.0, keep_feasible=True),
        constraints=[LinearConstraint(np.ones((1, 6)), 1.0, 1.0)],
        method="trust-constr",
        options={"gtol": 1e-11, "xtol": 1e-14, "maxiter": 2000},
    )
    # An interior-point method stops short of the bounds by its last barrier, of about 1e-8.
    assert dt.TiltedRisk(tilt)(losses, weight=weight).item() == pytest.approx(-sign * found.fun, abs=2e-7)


def _least(dual, low: float, high: float) -> float:
    """Least value of a convex function of one number, by golden section."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if dual(left) < dual(right) else (left, high)
    return dual(0.5 * (low + high))


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_duals(seed):
    losses = _losses(50, seed)
    n = len(losses)

    def kl(log_tau: float) -> float:
        tau = math.exp(log_tau)
        return tau * ((losses / tau).logsumexp(0).item() - math.log(n) + 0.7)

    def chi_square(eta: float) -> float:
        return eta + math.sqrt(1.0 + 2.0 * 0.7) * (losses - eta).clamp(min=0).square().mean().sqrt().item()

    def cvar(eta: float) -> float:
        return eta + (losses - eta).clamp(min=0).mean().item() / 0.23

    # Golden section knows the place to about 1e-8 and the value to rounding.
    assert dt.KLRisk(0.7)(losses).item() == pytest.approx(_least(kl, -5.0, 5.0), abs=1e-10)
    assert dt.ChiSquareRisk(0.7)(losses).item() == pytest.approx(_least(chi_square, -50.0, 5.0), abs=1e-10)
    assert dt.CVaRRisk(0.23)(losses).item() == pytest.approx(_least(cvar, -5.0, 5.0), abs=1e-10)


def test_the_temperature_is_that_of_rows_of_scores():
    """One row of margins is a batch of losses."""
    losses = _losses(12, 0)
    tau = F.optimal_tau(losses[None], rho=0.6, tau_min=1e-4, tau_max=1e4)
    torch.testing.assert_close(F.kl_ball_weights(losses, rho=0.6), F.kl_weights(losses[None], tau)[0])


def test_float32_is_as_good_as_its_digits():
    for seed in range(20):
        losses = 5.0 + _losses(300, seed)
        for risk in (dt.KLRisk(1.0), dt.ChiSquareRisk(2.0), dt.CVaRRisk(0.07), dt.TiltedRisk(1e-4)):
            torch.testing.assert_close(risk(losses.float()).double(), risk(losses), rtol=2e-6, atol=0)


# Limits ------------------------------------------------------------------------------------------------------


def test_limits_are_the_mean_and_the_extremes():
    losses = _losses(9, 0)
    mean, top, low = losses.mean().item(), losses.max().item(), losses.min().item()
    for tiny in (1e-9, -1e-9):
        assert dt.TiltedRisk(tiny)(losses).item() == pytest.approx(mean, abs=1e-8)
    # (1/t) log n is what is left.
    assert dt.TiltedRisk(1e9)(losses).item() == pytest.approx(top, abs=1e-8)
    assert dt.TiltedRisk(-1e9)(losses).item() == pytest.approx(low, abs=1e-8)
    for at_the_mean in (dt.KLRisk(0.0), dt.ChiSquareRisk(0.0), dt.CVaRRisk(1.0), dt.risks.MeanRisk()):
        assert at_the_mean(losses).item() == pytest.approx(mean, abs=1e-14)
    for at_the_top in (dt.CVaRRisk(1 / 9), dt.CVaRRisk(0.01), dt.ChiSquareRisk(4.0), dt.ChiSquareRisk(99.0)):
        assert at_the_top(losses).item() == pytest.approx(top, abs=1e-14)
    assert dt.KLRisk(math.log(9) - 1e-9)(losses).item() == pytest.approx(top, abs=1e-8)


def test_several_greatest_losses_share_the_weight():
    losses = torch.tensor([1.0, 3.0, 3.0, 0.0], dtype=torch.float64)
    for risk in (dt.KLRisk(1.0), dt.ChiSquareRisk(1.0)):  # the balls hold what rests on two of four
        assert risk(losses).item() == pytest.approx(3.0, abs=1e-8)
        expected = torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64)
        torch.testing.assert_close(risk.weights(losses), expected)


def test_the_constrained_and_the_penalised_risk_share_their_weights():
    losses = _losses(9, 0)
    tau = 0.6
    tilted = dt.TiltedRisk(1 / tau).weights(losses)
    rho = (tilted * (9 * tilted).log()).sum().item()
    torch.testing.assert_close(dt.KLRisk(rho).weights(losses), tilted)
    at_tau = dt.KLRisk(rho, tau=dt.ConstantTemperature(tau))
    torch.testing.assert_close(at_tau(losses), dt.KLRisk(rho)(losses))
    torch.testing.assert_close(dt.OptimisticRisk(dt.TiltedRisk(2.0))(losses), dt.TiltedRisk(-2.0)(losses))


def test_the_trimmed_loss_is_the_mean_of_the_smallest():
    losses = torch.tensor([4.0, 1.0, 100.0, 2.0, 3.0])
    assert dt.OptimisticRisk(dt.CVaRRisk(0.6))(losses).item() == pytest.approx(2.0, rel=1e-6)
    assert dt.OptimisticRisk(dt.CVaRRisk(0.6)).weights(losses)[2] == 0


# With a model ------------------------------------------------------------------------------------------------


def test_three_lines_with_any_loss():
    model = torch.nn.Linear(3, 4)
    x, y = torch.randn(16, 3), torch.randint(4, (16,))
    risk = dt.TiltedRisk(-1.0)
    losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
    risk(losses).backward()
    got = model.weight.grad.clone()
    model.zero_grad()
    fresh = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
    (risk.weights(losses) * fresh).sum().backward()
    torch.testing.assert_close(got, model.weight.grad)


def test_a_learned_temperature_finds_the_best_one():
    losses = _losses(64, 1)
    risk = dt.KLRisk(0.8, tau=dt.LearnableTemperature(3.0, tau_min=0.01, tau_max=10.0)).double()
    optimizer = torch.optim.Adam(risk.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        risk(losses).backward()
        optimizer.step()
    assert risk(losses).item() == pytest.approx(dt.KLRisk(0.8)(losses).item(), abs=1e-6)


def _held_still(risk: dt.interfaces.SampleRisk, seed: int = 7, epochs: int = 60):
    """Mean gradient of minibatches, and the last values, of a model that does not move; and the full gradient."""
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    features = torch.randn(64, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    offset = 1.5 * _losses(64, 6)

    def losses(index):
        return offset[index] + features[index] @ theta

    (full,) = torch.autograd.grad(dt.TiltedRisk(1.0)(losses(torch.arange(64))), theta)
    drawn, total, values = torch.Generator().manual_seed(seed), torch.zeros(2, dtype=torch.float64), []
    # Epochs, not draws: every sample comes as often as any other, so that what is left is bias.
    batches = [b for _ in range(epochs) for b in torch.randperm(64, generator=drawn).split(4)]
    for step, batch in enumerate(batches):
        theta.grad = None
        value = risk(losses(batch))
        value.backward()
        risk.commit()
        if step >= len(batches) // 3:  # once the estimate has settled
            total += theta.grad
            values.append(value.item())
    return total / len(values), np.mean(values), full, dt.TiltedRisk(1.0)(losses(torch.arange(64))).item()


@pytest.mark.parametrize("kind", ["tilted", "kl"])
def test_one_held_number_removes_the_bias_of_minibatches(kind):
    """Fixed seeds: 640 batches of 4, after 320 to settle. The plug-in is off by many times what the held number is."""

    def build(**options):
        if kind == "tilted":
            return dt.TiltedRisk(1.0, **options).double()
        # tau = 1 and rho near 0: the same gradient; rho adds a constant
        return dt.KLRisk(1e-9, tau=dt.ConstantTemperature(1.0), **options).double()

    plain, plain_value, full, full_value = _held_still(build())
    held, held_value, _, _ = _held_still(build(estimator=dt.LogMovingAverage(1, gamma=0.02)))
    # Over seeds 0 to 4 the ratios are at most 0.03 and 0.004.
    assert (held - full).norm() < 0.1 * (plain - full).norm()
    assert abs(held_value - full_value) < 0.02 * abs(plain_value - full_value)
    assert plain_value < full_value - 0.1  # Jensen: too low


def test_group_dro_finds_the_minimax():
    """(theta - 1)^2 and (theta + 1)^2 / 4 + 1/2 with a rare second group: they meet at the minimax."""
    theta = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    risk = dt.GroupRisk(2, step_size=0.1).double()
    optimizer = dt.CompositionalOptimizer(torch.optim.SGD([theta], lr=0.05), risk)
    group = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])

    def losses() -> torch.Tensor:
        per_group = torch.stack([(theta - 1).square(), (theta + 1).square() / 4 + 0.5])
        return per_group[group]

    for _ in range(1200):
        risk(losses(), group=group).backward()
        optimizer.step()
        optimizer.zero_grad()
    # (t - 1)^2 = (t + 1)^2 / 4 + 1/2 has the root (5 - sqrt(22)) / 3; there q0 2(t - 1) + q1 (t + 1)/2 = 0.
    best = (5 - math.sqrt(22)) / 3
    assert theta.item() == pytest.approx(best, abs=1e-4)
    q1 = 2 * (1 - best) / (2 * (1 - best) + (best + 1) / 2)
    torch.testing.assert_close(risk.q, torch.tensor([1 - q1, q1], dtype=torch.float64), rtol=0, atol=1e-3)
    assert risk.eval()(losses(), group=group).item() == pytest.approx((best - 1) ** 2, abs=1e-3)


def test_a_missing_group_keeps_its_weight_up_to_normalisation():
    risk = dt.GroupRisk(3, step_size=0.5)
    losses = torch.tensor([2.0, 4.0], requires_grad=True)
    value = risk(losses, group=torch.tensor([0, 2]))
    value.backward()
    q = torch.tensor([math.exp(1.0), 1.0, math.exp(2.0)])
    torch.testing.assert_close(value.detach(), (q[0] * 2 + q[2] * 4) / (q[0] + q[2]))
    risk.commit()
    torch.testing.assert_close(risk.q, q / q.sum())


def test_parts_of_a_batch_move_group_weights_as_the_whole_does():
    losses, group = _losses(12, 0), torch.arange(12) % 3
    weights = []
    for parts in ([slice(0, 12)], [slice(0, 5), slice(5, 12)]):
        risk = dt.GroupRisk(3, step_size=0.7).double()
        for part in parts:
            risk(losses[part].requires_grad_(), group=group[part]).backward()
        risk.commit()
        weights.append(risk.q)
    torch.testing.assert_close(*weights, rtol=1e-12, atol=1e-14)


# Memory without an objective ---------------------------------------------------------------------------------


def _alone(**options):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1).double()
    risk = dt.TiltedRisk(1.0, estimator=dt.LogMovingAverage(1, gamma=0.5)).double()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, risk, dt.CompositionalOptimizer(base, risk, **options)


def _batch_losses(model, seed):
    return model(_losses(18, seed).view(6, 3))[:, 0].square()


def test_an_optimizer_commits_the_memory_of_a_risk():
    model, risk, optimizer = _alone(gamma=0.25)
    log_u = None
    for seed in range(3):
        losses = _batch_losses(model, seed)
        log_g = losses.detach().logsumexp(0) - math.log(6)
        log_u = log_g if log_u is None else torch.logaddexp(math.log(0.75) + log_u, math.log(0.25) + log_g)
        risk(losses).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(risk.estimator.log_u[0], log_u)


def test_a_forward_without_backward_and_a_weight_leave_no_trace():
    model, risk, optimizer = _alone()
    risk(_batch_losses(model, 0)).backward()
    risk(_batch_losses(model, 1))
    risk.weights(_batch_losses(model, 2))
    optimizer.step()
    assert risk.estimator.steps == 1
    expected = _alone()
    expected[1](_batch_losses(expected[0], 0)).backward()
    expected[2].step()
    assert torch.equal(risk.estimator.log_u, expected[1].estimator.log_u)


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_step_that_a_gradient_scaler_skips_leaves_no_trace(by_hand):
    states = []
    for scaled in (True, False):
        model, risk, optimizer = _alone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if by_hand else optimizer
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6, enabled=scaled)
        for seed in range(4):
            overflow = seed == 2
            if overflow and not scaled:
                continue
            scale = scaler.get_scale()
            scaler.scale(risk(_batch_losses(model, seed))).backward()
            if overflow:
                model.weight.grad.fill_(math.inf)
            scaler.step(optimizer)
            scaler.update()
            if by_hand:
                risk.discard() if scaler.get_scale() < scale else risk.commit()
            optimizer.zero_grad()
            assert not risk.pending
        states.append({**model.state_dict(), **risk.state_dict()})
    assert states[0]["estimator.steps"] == 3
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0, msg=name)


def test_memory_that_nobody_commits_is_refused():
    model, risk, _ = _alone()
    forgetful = torch.optim.SGD(model.parameters(), lr=0.1)
    risk(_batch_losses(model, 0)).backward()
    risk(_batch_losses(model, 1)).backward()  # accumulation is none of that
    forgetful.step()
    with pytest.raises(RuntimeError, match=r"committed by the optimizer step.*received a parameter update"):
        risk(_batch_losses(model, 2))


def test_a_learned_tau_must_be_in_the_optimizer():
    model = torch.nn.Linear(3, 1)
    risk = dt.KLRisk(0.5, tau=dt.LearnableTemperature(1.0), estimator=dt.LogMovingAverage(1))
    with pytest.raises(ValueError, match=r"\[\*model.parameters\(\), \*risk.parameters\(\)\]"):
        dt.CompositionalOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), risk)
    both = [*model.parameters(), *risk.parameters()]
    dt.CompositionalOptimizer(torch.optim.SGD(both, lr=0.1), risk)


# What does not fit -------------------------------------------------------------------------------------------

TWO = torch.tensor([1.0, 2.0])
BAD_CALLS = [
    (
        lambda: dt.risks.MeanRisk()(torch.ones(2, 2)),
        ValueError,
        r"losses of shape \[n\].*\[2, 2\].*reduction=",
    ),
    (
        lambda: dt.risks.MeanRisk()(torch.tensor(1.0)),
        ValueError,
        r"losses of shape \[n\].*received shape \[\]",
    ),
    (
        lambda: dt.risks.MeanRisk()(torch.tensor([1, 2])),
        TypeError,
        r"floating-point.*int64.*losses.float\(\)",
    ),
    (lambda: dt.risks.MeanRisk()(TWO, weight=torch.ones(3)), ValueError, r"weight of shape \[2\].*\[3\]"),
    (
        lambda: dt.risks.MeanRisk()(TWO, weight=-TWO),
        ValueError,
        r"weights >= 0, received one of -2.*OptimisticRisk",
    ),
    (lambda: dt.KLRisk(math.log(2))(TWO), ValueError, r"rho < log n.*n=2.*3 samples"),
    (
        lambda: dt.KLRisk(0.5)(TWO, weight=torch.tensor([1.0, 0.0])),
        ValueError,
        r"rho < log n.*n=1 .*2 samples",
    ),
    (lambda: dt.GroupRisk(2)(TWO), ValueError, r"the group of each sample for GroupRisk, received none"),
    (lambda: dt.GroupRisk(2)(TWO, group=torch.tensor([0, 2])), IndexError, r"from 0 to 1.*from 0 to 2"),
    (lambda: dt.GroupRisk(2)(TWO, group=torch.tensor([-1, 0])), IndexError, r"from 0 to 1.*from -1 to 0"),
    (lambda: dt.GroupRisk(2)(TWO, group=TWO), TypeError, r"integer dtype, received torch.float32"),
    (
        lambda: dt.GroupRisk(2)(TWO, group=torch.zeros(3, dtype=torch.long)),
        ValueError,
        r"group of shape \[2\]",
    ),
]
BAD_PARTS = [
    (lambda: dt.TiltedRisk(0.0), ValueError, r"a tilt other than 0.*received tilt=0.*MeanRisk\(\)"),
    (lambda: dt.TiltedRisk(math.inf), ValueError, r"a finite tilt, received tilt=inf"),
    (lambda: dt.TiltedRisk("1"), TypeError, r"tilt as a number, received str"),
    (lambda: dt.TiltedRisk(1.0, estimator=0.9), TypeError, r"estimator to be an Estimator, received float"),
    (lambda: dt.CVaRRisk(0.0), ValueError, r"alpha in \(0, 1\], received alpha=0.0"),
    (lambda: dt.CVaRRisk(1.1), ValueError, r"alpha in \(0, 1\], received alpha=1.1"),
    (lambda: dt.CVaRRisk(True), TypeError, r"alpha as a number, received bool"),
    (lambda: dt.KLRisk(-0.1), ValueError, r"rho >= 0, received rho=-0.1"),
    (lambda: dt.ChiSquareRisk(-0.1), ValueError, r"rho >= 0, received rho=-0.1"),
    (lambda: dt.KLRisk(0.1, tau=1.0), TypeError, r"tau to be a TemperaturePredictor, received float"),
    (
        lambda: dt.KLRisk(0.1, tau=dt.IndividualTemperature(5, tau_min=0.1, tau_max=1.0)),
        ValueError,
        r"reads nothing of a sample.*IndividualTemperature, which reads index",
    ),
    (
        lambda: dt.KLRisk(0.1, estimator=dt.LogMovingAverage(1)),
        ValueError,
        r"expected a tau for the estimator.*received LogMovingAverage and tau=None",
    ),
    (lambda: dt.GroupRisk(0), ValueError, r"num_groups >= 1, received num_groups=0"),
    (lambda: dt.GroupRisk(2, step_size=0.0), ValueError, r"step_size > 0, received step_size=0.0"),
    (lambda: dt.OptimisticRisk(0.5), TypeError, r"risk to be a SampleRisk, received float"),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD_CALLS + BAD_PARTS)
def test_what_does_not_fit_is_refused(call, error, text, no_shape_checks):
    with pytest.raises(error, match=f"(?s){text}"):
        call()
