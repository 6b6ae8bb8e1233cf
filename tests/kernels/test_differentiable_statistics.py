"""Log-sum-exp, KL and entropy with gradient, against autograd through the score matrix."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from streams import LEAVES, blocks_of, row_problems

import dro_temp as dt
from dro_temp.kernels import byte_budget, log_mean_exp_rows
from dro_temp.kernels.dispatch import triton_backend

float64 = torch.float64
NAMES = ("log_sum_exp", "kl", "entropy")


def by_autograd(rows, tau):
    """Log-mean-exp, temperatures and the three statistics, each with its whole graph."""
    scores = rows.dense_scores
    tau = tau if isinstance(tau, torch.Tensor) else tau.predict(rows)
    own = scores.gather(1, rows.target[:, None]).squeeze(1)
    inside = scores
    if not rows.target_in_support:
        inside = scores.scatter(1, rows.target[:, None], -1e30)  # with -inf the gradient of tau would be NaN
    log_p = (inside / tau[:, None]).log_softmax(1)
    log_sum = (inside / tau[:, None]).logsumexp(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    log_m = math.log(max(rows.support_size, 1))
    found = {"log_sum_exp": log_sum, "kl": log_m - entropy, "entropy": entropy}
    return log_sum - own / tau - log_m, tau, found


@given(row_problems(heights=(1, 2, 7)), seeds, st.integers(1, 4), st.sampled_from([0, 2**30]))
@settings(max_examples=80)
def test_gradients_are_those_of_autograd(problem, seed, step, budget):
    if problem.keys.shape[0] < (1 if problem.target_in_support else 2):
        return
    n, g = len(problem.target), torch.Generator().manual_seed(seed)
    weights = torch.randn(5, n, generator=g, dtype=float64)
    results = []
    for streams in (True, False):
        leaves, rows, tau = problem.fresh()
        if streams:
            with blocks_of(step), byte_budget(budget):
                output = log_mean_exp_rows(rows, tau, statistics=NAMES, differentiable=True)
                parts = (output.log_g, output.tau, *(output.statistics[name] for name in NAMES))
                value = sum((w * x).sum() for w, x in zip(weights, parts, strict=True))
                value.backward()
        else:
            log_g, taus, found = by_autograd(rows, tau)
            parts = (log_g, taus, *(found[name] for name in NAMES))
            value = sum((w * x).sum() for w, x in zip(weights, parts, strict=True))
            value.backward()
        gradients = {name: x.grad for name, x in leaves.items() if x is not None and x.grad is not None}
        results.append((parts, gradients))
    (ours, our_gradients), (theirs, their_gradients) = results
    scale = (
        problem.size / problem.low if problem.reads else problem.size / float(problem.tau.min() if n else 1.0)
    )
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12 * (1 + scale))
    assert our_gradients.keys() >= their_gradients.keys()
    for name, expected in their_gradients.items():
        found = our_gradients[name]
        assert (found - expected).abs().max() <= 1e-8 * (expected.abs().max() + 1) * (1 + scale), name


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@given(row_problems(heights=(1, 5)), seeds)
@settings(max_examples=12, deadline=None)
def test_the_kernel_agrees_with_plain_pytorch(problem, seed):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pytest.importorskip("triton", reason="Triton is not installed")
    weights = torch.randn(
        5, len(problem.target), generator=torch.Generator().manual_seed(seed), dtype=float64
    )
    results = []
    for options in ({}, {"backend": triton_backend(device)}):
        leaves, rows, tau = problem.to(device, (*LEAVES, "target")).fresh()
        output = log_mean_exp_rows(
            rows, tau, statistics=("entropy", "std", "kl", "log_sum_exp"), differentiable=True, **options
        )
        assert tuple(output.statistics) == ("entropy", "std", "kl", "log_sum_exp")
        assert not output.statistics["std"].requires_grad
        parts = (output.log_g, output.tau, *(output.statistics[name] for name in NAMES))
        sum((w.to(device) * x).sum() for w, x in zip(weights, parts, strict=True)).backward()
        results.append([*parts, *(x.grad for x in leaves.values() if x is not None and x.grad is not None)])
    scale = problem.size / problem.low
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-8 * (theirs.abs().max() + 1) * (1 + scale)


@pytest.mark.parametrize(
    "loss", [dt.KLRobustLoss(1.0), dt.LikelihoodLoss(), dt.SigmoidLoss()], ids=lambda x: type(x).__name__
)
@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_loss_returns_them(loss, backend, inside):
    """An entropy bonus beside the loss, with a row that does not count."""
    loss.backend = backend  # the sigmoid loss takes statistics from the score matrix all the same
    g = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(shape, generator=g, dtype=float64, requires_grad=True) for shape in ((6, 3), (9, 3))
    ]
    tau = (0.5 + torch.rand(6, generator=g, dtype=float64)).requires_grad_()
    target, weight = torch.arange(6), torch.tensor([1.0, 1.0, 0.0, 2.0, 1.0, 1.0], dtype=float64)
    rows = dt.Rows(dt.LinearScores(*leaves), target, target_in_support=inside, weight=weight)
    output = loss.evaluate(rows, tau, statistics=("entropy", "max"), differentiable=True)
    assert output.statistics["entropy"][2] == 0.0
    assert not output.statistics["max"].requires_grad
    ours = torch.autograd.grad(output.values.sum() - 0.3 * output.statistics["entropy"].sum(), (*leaves, tau))
    _, _, found = by_autograd(rows, tau)
    counted = weight > 0
    value = loss(rows, tau).sum() - 0.3 * found["entropy"][counted].sum()
    for one, other in zip(ours, torch.autograd.grad(value, (*leaves, tau)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    plain = loss.evaluate(rows, tau, statistics=("entropy",))
    assert not plain.statistics["entropy"].requires_grad
    torch.testing.assert_close(plain.statistics["entropy"], output.statistics["entropy"].detach())
