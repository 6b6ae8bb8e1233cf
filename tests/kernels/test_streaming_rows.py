"""Streaming log-mean-exp of rows against the score matrix and ordinary autograd."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from streams import (
    TRANSFORMS,
    RowProblem,
    assert_close,
    assert_no_worse_than_eager,
    blocks_of,
    product_rows,
    row_problems,
    upstream_of,
)

import dro_temp as dt
from dro_temp.functional import Scale
from dro_temp.kernels import STATISTICS, GradOutput, byte_budget, log_mean_exp_rows, products
from dro_temp.kernels.backends import reference

float64 = torch.float64


@GradOutput
def _expect_ones(log_g, tau, rows):
    return torch.ones_like(log_g), torch.zeros_like(log_g)


@given(row_problems(), seeds, st.integers(1, 4), st.booleans(), st.sampled_from([0, 2**30]), st.booleans())
@settings(max_examples=150)
def test_equals_eager(problem, seed, step, speculates, budget, uniform):
    """Values, statistics and all gradients, whether backward rescales, recalls or runs again."""
    n = len(problem.target)
    upstream = upstream_of(problem, seed)
    if uniform:
        upstream = (torch.full((n,), -0.7, dtype=float64), torch.zeros(n, dtype=float64))
    theirs = problem.run(reference.log_mean_exp_rows, upstream)
    with blocks_of(step), byte_budget(budget):
        ours = problem.run(log_mean_exp_rows, upstream, expected=_expect_ones if speculates else None)
    assert_close(ours, theirs, problem, upstream)


@given(row_problems(heights=(1, 7)), seeds, st.sets(st.sampled_from(STATISTICS)))
@settings(max_examples=30)
def test_statistics_that_are_asked_for_and_no_others(problem, seed, wanted):
    with blocks_of(2):
        ours = problem.run(log_mean_exp_rows, upstream_of(problem, seed), statistics=tuple(wanted))
    assert {name for name in STATISTICS if name in ours} == wanted


@given(row_problems(heights=(7,)), seeds)
@settings(max_examples=40)
def test_the_size_of_blocks_changes_nothing(problem, seed):
    upstream = upstream_of(problem, seed)
    with blocks_of(100):
        whole = problem.run(log_mean_exp_rows, upstream)
    for step in (1, 3, 6):
        with blocks_of(step):
            assert_close(problem.run(log_mean_exp_rows, upstream), whole, problem, upstream)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("speculates", [True, False])
def test_gradcheck(transform, inside, speculates):
    g = torch.Generator().manual_seed(0)
    shapes = ((5, 2), (4, 2), (4,))
    leaves = [torch.randn(shape, generator=g, dtype=float64, requires_grad=True) for shape in shapes]
    tau = (0.5 + torch.rand(5, generator=g, dtype=float64)).requires_grad_()
    target = torch.tensor([0, 3, 1, 1, 2])

    def log_g(queries, keys, bias, tau):
        p = product_rows(queries, keys, target, bias, transform, inside)
        return log_mean_exp_rows(p, tau, assumed_grad_output=_expect_ones if speculates else None).log_g

    with blocks_of(2):
        assert torch.autograd.gradcheck(log_g, (*leaves, tau))


@given(row_problems(heights=(1, 7)), seeds, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=60)
def test_low_precision_is_no_worse_than_eager(problem, seed, dtype):
    """Against float64 on the same numbers."""
    if isinstance(problem.transform, Scale):
        problem.transform = None  # see below
    problem, upstream = problem.to(dtype), upstream_of(problem, seed)
    with blocks_of(3):
        assert_no_worse_than_eager(problem.run(log_mean_exp_rows, upstream), problem, upstream)


def _exponents(queries, keys, transform=None, tau=0.005):
    """log_g of unit vectors, ours and that in float64."""
    tau, target = torch.full((len(queries),), tau), torch.arange(len(queries))
    exact = product_rows(queries.double(), keys.double(), target, transform=transform)
    ours = log_mean_exp_rows(product_rows(queries, keys, target, transform=transform), tau).log_g
    return ours.double(), reference.log_mean_exp_rows(exact, tau.double()).log_g


def _unit(n, dtype):
    return torch.nn.functional.normalize(torch.randn(n, 64, generator=torch.Generator().manual_seed(n))).to(
        dtype
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scaling_costs_no_digits(dtype):
    """Eager multiplies float32 scores by the factor; queries of low precision would lose digits by it."""
    ours, exact = _exponents(_unit(8, dtype), _unit(9, dtype), Scale(0.7))
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("queries", [torch.float32, torch.bfloat16])
def test_scores_keep_their_digits_whatever_the_processor_multiplies(fast, queries):
    """At tau = 0.005 scores that were rounded to bfloat16 are off by 0.4 in the exponent."""
    with mock.patch.object(products, "cpu_multiplies_bfloat16", return_value=fast):
        ours, exact = _exponents(_unit(8, queries), _unit(9, torch.bfloat16))
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_rows_that_are_certain_of_their_target_are_no_worse_than_eager_in_bfloat16(seed, inside, monkeypatch):
    """p - 1 nearly cancels there: after products in bfloat16, the rounding of p alone would be left."""
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: True)
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=float64)

    tau = 0.005 * (1 + torch.rand(1, generator=g, dtype=float64))
    target = torch.randint(4, (1,), generator=g)
    problem = RowProblem(
        0.1 * normal(1, 2),
        normal(4, 2),
        None,
        tau,
        normal(3, 4),
        normal(3),
        target,
        None,
        inside,
        False,
        0.005,
    ).to(torch.bfloat16)
    upstream = upstream_of(problem, seed)
    assert_no_worse_than_eager(problem.run(log_mean_exp_rows, upstream), problem, upstream)


@pytest.mark.parametrize(("certainty", "most"), [(0.0, 1.1), (4.0, 1.1), (16.0, 2.0)])
def test_ordinary_rows_are_as_precise_as_eager_in_bfloat16(certainty, most, monkeypatch):
    """The target's term does not pass through a product in bfloat16; rows certain of it may lose one bit."""
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: True)
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(256, 32, generator=g), torch.randn(2000, 32, generator=g).bfloat16()
    target = torch.randint(2000, (256,), generator=g)
    queries = (queries / 32**0.5 + certainty * keys.float()[target] / 32).bfloat16()
    tau = torch.ones(256, dtype=float64)

    def gradients(backend, dtype):
        factors = [x.to(dtype, copy=True).requires_grad_() for x in (queries, keys)]
        loss = dt.InfoNCELoss(backend=backend)(dt.Rows(dt.LinearScores(*factors), target), tau)
        return [g.double() for g in torch.autograd.grad(loss.mean(), factors)]

    exact = gradients("reference", float64)
    eager, streamed = (gradients(backend, torch.bfloat16) for backend in ("reference", "torch"))
    for ours, theirs, truth in zip(streamed, eager, exact, strict=True):
        assert (ours - truth).norm() <= most * (theirs - truth).norm()


@given(row_problems(heights=(1, 5)), seeds, st.sampled_from(["mean", "both", "twice"]))
@settings(max_examples=40)
def test_a_mean_formed_in_the_pass_is_the_mean(problem, seed, way):
    """Its gradient, alone and beside that of the rows themselves, and through a graph that is kept."""
    n = len(problem.target)
    weight = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=float64) + 0.1

    def values(log_g, tau):
        return tau * (log_g + 0.3)

    def gradient(log_g, tau, rows):
        return weight[rows] * tau, weight[rows] * (log_g + 0.3)

    def mean(log_g, tau):
        return weight @ values(log_g, tau)

    results = []
    for expected in (GradOutput(gradient, mean, affine=True), None):
        leaves = [
            None if x is None else x.detach().clone().requires_grad_()
            for x in (problem.queries, problem.keys, problem.bias)
        ]
        tau = torch.linspace(0.5, 2.0, n, dtype=float64).requires_grad_()
        rows = product_rows(
            leaves[0], leaves[1], problem.target, leaves[2], problem.transform, problem.target_in_support
        )
        with blocks_of(2):
            found = log_mean_exp_rows(rows, tau, assumed_grad_output=expected)
            assert (found.mean is None) == (expected is None)
            loss = mean(found.log_g, found.tau) if found.mean is None else 0.7 * found.mean / 0.7
            if way == "both":
                loss = loss + found.log_g.square().sum()
            if way == "twice":
                loss.backward(retain_graph=True)
            loss.backward()
        results.append([x.grad for x in (*leaves, tau) if x is not None])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


class Squared(dt.KLRobustLoss):
    """Not affine in log g, which its base is."""

    def from_log_mean_exp(self, rows, log_g, tau):
        return super().from_log_mean_exp(rows, log_g, tau).square()


@pytest.mark.parametrize(
    ("loss", "affine"),
    [
        (dt.KLRobustLoss(1.0), True),
        (dt.EntropicRiskLoss(), True),
        (dt.LikelihoodLoss(), True),
        (dt.InfoNCELoss(), True),
        (Squared(1.0), False),
        (dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(9)), False),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_loss_is_affine_where_its_values_are(loss, affine):
    """A kernel that is told so multiplies by the gradient before it knows log g."""
    rows = dt.Rows(torch.randn(4, 6, dtype=float64), torch.arange(4), index=torch.arange(4))
    assert loss._mean_gradient(rows).affine == affine
    tau = torch.full((4,), 0.7, dtype=float64)
    if affine:
        log_g = torch.randn(4, dtype=float64, requires_grad=True)
        values = loss.from_log_mean_exp(rows, log_g, tau)
        (slope,) = torch.autograd.grad(values.sum(), log_g)
        torch.testing.assert_close(
            values + slope, loss.from_log_mean_exp(rows, log_g + 1.0, torch.full((4,), 0.7, dtype=float64))
        )
