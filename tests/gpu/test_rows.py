"""Rows over a vocabulary by the GPU's kernels, against float64 and against plain PyTorch of the same precision."""

import copy
import math

import pytest
import torch

import dro_temp as dt
from dro_temp.functional import SoftCap
from dro_temp.predictors import HiddenEncoder, StatisticsEncoder, SumEncoder

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

BOUNDS = {"tau_min": 0.3, "tau_max": 2.0}
LOW = (torch.bfloat16, torch.float16)
#: Times the error of plain PyTorch in the same precision.
FACTOR = 2.0
SUMS = torch.finfo(torch.float32).eps


def predictor_of(kind, size):
    """A constant, a network over hidden states and statistics, the paper's network over logits."""
    torch.manual_seed(1)
    if kind == "network":
        both = SumEncoder([HiddenEncoder(size.width, width=16), StatisticsEncoder(width=16)])
        return dt.TempNet(both, **BOUNDS).to(size.device)
    if kind == "paper":
        return dt.TempNet.for_logits(size.vocabulary, dropout=0.0, **BOUNDS).to(size.device)
    return dt.ConstantTemperature(0.8).to(size.device)


def numbers(size, dtype, bias):
    """Hidden states, head, bias and labels, some of them -100."""
    g = torch.Generator(size.device).manual_seed(0)
    made = {"generator": g, "device": size.device}
    hidden = torch.randn(size.tokens, size.width, **made).to(dtype)
    weight = (torch.randn(size.vocabulary, size.width, **made) * 2 * size.width**-0.5).to(dtype)
    labels = torch.randint(size.vocabulary, (size.tokens,), **made)
    labels[::3] = -100
    return hidden, weight, torch.randn(size.vocabulary, **made).to(dtype) if bias else None, labels


def evaluated(given, predictor, backend, dtype, *, transform=None, frozen=False, score_dtype=None):
    """Values and gradients by name, in float64."""
    hidden, weight, bias, labels = given
    leaves = {"hidden": hidden, "weight": weight} | ({} if bias is None else {"bias": bias})
    leaves = {name: x.to(dtype, copy=True).requires_grad_(not frozen) for name, x in leaves.items()}
    predictor = copy.deepcopy(predictor)
    if dtype == torch.float64:
        predictor = predictor.double()
    scores = dt.LinearScores(
        leaves["hidden"], leaves["weight"], leaves.get("bias"), transform, score_dtype=score_dtype
    )
    rows = dt.hosts.labelled_rows(scores, labels, leaves["hidden"].detach())
    output = dt.KLRobustLoss(2.0, backend=backend).evaluate(rows, predictor)
    if output.values.requires_grad:
        output.values.mean().backward()
    leaves |= dict(predictor.named_parameters())
    found = {f"d {name}": x.grad for name, x in leaves.items() if x.grad is not None}
    return {name: x.detach().double() for name, x in ({"values": output.values} | found).items()}


def assert_within(ours, eager, truth, dtype):
    """No worse than plain PyTorch times the factor, one rounding of the result, and roundings of the sums."""
    assert ours.keys() == truth.keys()
    for name, value in truth.items():
        largest = value.abs().max()
        error, theirs = ((x[name] - value).abs().max() for x in (ours, eager))
        rounding = torch.finfo(dtype).eps if name in ("d hidden", "d weight", "d bias") else 0.0
        allowed = FACTOR * theirs + (rounding + 64 * SUMS) * largest
        assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}, eager {theirs:.3g}"


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("kind", ["constant", "network", "paper"])
def test_rows_are_no_worse_than_eager(size, kind, dtype):
    given, predictor = numbers(size, dtype, bias=False), predictor_of(kind, size)
    truth = evaluated(given, predictor, "reference", torch.float64)
    eager = evaluated(given, predictor, "reference", dtype)
    assert_within(evaluated(given, predictor, "triton", dtype), eager, truth, dtype)


@pytest.mark.parametrize("transform", [None, SoftCap(5.0)], ids=["bias", "bias and soft cap"])
def test_a_bias_and_a_soft_cap(size, transform):
    dtype = torch.bfloat16
    given, predictor = numbers(size, dtype, bias=True), predictor_of("network", size)
    truth = evaluated(given, predictor, "reference", torch.float64, transform=transform)
    eager = evaluated(given, predictor, "reference", dtype, transform=transform)
    assert_within(evaluated(given, predictor, "triton", dtype, transform=transform), eager, truth, dtype)


@pytest.mark.parametrize("kind", ["network", "paper"])
def test_a_frozen_host(size, kind):
    dtype = torch.bfloat16
    given, predictor = numbers(size, dtype, bias=False), predictor_of(kind, size)
    truth = evaluated(given, predictor, "reference", torch.float64, frozen=True)
    eager = evaluated(given, predictor, "reference", dtype, frozen=True)
    ours = evaluated(given, predictor, "triton", dtype, frozen=True)
    assert not {"d hidden", "d weight"} & ours.keys()
    assert_within(ours, eager, truth, dtype)


def test_bfloat16_scores_have_their_documented_error(size):
    """0.03 in log g at temperatures near 0.8 for scores of deviation 2: docs/streaming.md has the table."""
    given, predictor = numbers(size, torch.bfloat16, bias=False), predictor_of("constant", size)
    truth = evaluated(given, predictor, "reference", torch.float64)
    ours = evaluated(given, predictor, "triton", torch.bfloat16, score_dtype=torch.bfloat16)
    assert (ours["values"] - truth["values"]).abs().max() <= 0.03
    for name in ("d hidden", "d weight"):
        assert (ours[name] - truth[name]).norm() <= 0.02 * truth[name].norm(), name


def test_statistics_with_gradient(size):
    """Entropy, KL and log-sum-exp, and the gradients of a mixture of them, by hand in float64."""
    hidden, weight, _, labels = numbers(size, torch.bfloat16, bias=False)
    labels = labels.clamp(min=0)
    names, mixture = ("entropy", "kl", "log_sum_exp"), (-0.3, 0.2, 0.1)

    def leaves(dtype):
        tau = torch.linspace(0.5, 2.0, size.tokens, device=size.device, dtype=dtype)
        return [x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight)] + [tau.requires_grad_()]

    x, w, tau = leaves(torch.float64)
    scaled = x @ w.T / tau[:, None]
    log_p = scaled.log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    truth = (entropy, math.log(size.vocabulary) - entropy, scaled.logsumexp(1))
    sum(a * value.mean() for a, value in zip(mixture, truth, strict=True)).backward()
    gradients = [t.grad for t in (x, w, tau)]
    ours = leaves(torch.bfloat16)
    ours[2] = tau.detach().float().requires_grad_()
    rows = dt.Rows(dt.LinearScores(ours[0], ours[1]), labels)
    output = dt.KLRobustLoss(2.0, backend="triton").evaluate(
        rows, ours[2], statistics=names, differentiable=True
    )
    sum(a * output.statistics[n].mean() for a, n in zip(mixture, names, strict=True)).backward()
    for name, value in zip(names, truth, strict=True):
        torch.testing.assert_close(output.statistics[name].double(), value, rtol=1e-4, atol=1e-4)
    for found, expected in zip((t.grad.double() for t in ours), gradients, strict=True):
        assert (found - expected).norm() <= 0.01 * expected.norm()
