"""Losses that treat rows that the model has right differently: formulas, published forms, streaming."""

import math

import pytest
import torch

import dro_temp as dt
from dro_temp.functional import SoftCap
from dro_temp.kernels.dispatch import cpu_runs_on
from dro_temp.losses import ProbabilityWeightedLoss, SelectiveSmoothingLoss

LOSSES = [SelectiveSmoothingLoss, ProbabilityWeightedLoss]


def _problem(dtype=torch.float64, n=6, m=11, d=4, transform=None):
    g = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(k, d, generator=g, dtype=torch.float64).to(dtype) for k in (n, m))
    scores = dt.LinearScores(queries, keys, transform=transform)
    target = scores.dense().argmax(1)
    target[::2] = (target[::2] + 3) % m  # every other row is wrong
    tau = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
    return scores, target, tau


def _smoothing(log_p, right, target, alpha):
    own = log_p.gather(1, target[:, None]).squeeze(1)
    return torch.where(right, -(1 - alpha) * own, -alpha * log_p.mean(1))


def _published_weighting(log_p, right, target, drop):
    own = log_p.gather(1, target[:, None]).squeeze(1)
    return -(1.0 - drop * right.to(own)) * own.detach().exp() * own


def _same_gradients(ours, theirs, leaves):
    found, expected = (torch.autograd.grad(x.sum(), leaves, retain_graph=True) for x in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pairs", [False, True])
def test_formulas(pairs):
    scores, target, tau = _problem()
    s = scores.dense().requires_grad_()
    leaves = (s, tau.requires_grad_())
    rows = dt.Rows(s, target, target_in_support=not pairs)
    log_p, right = (s / tau[:, None]).log_softmax(1), s.argmax(1) == target
    ours, theirs = SelectiveSmoothingLoss(0.3)(rows, tau), _smoothing(log_p, right, target, 0.3)
    torch.testing.assert_close(ours, theirs)
    _same_gradients(ours, theirs, leaves)
    # The gradient is that of the published loss; the value is the probability of another token.
    ours = ProbabilityWeightedLoss(0.6)(rows, tau)
    own = log_p.gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(ours, (1.0 - 0.6 * right.to(own)) * (1.0 - own.exp()))
    _same_gradients(ours, _published_weighting(log_p, right, target, 0.6), leaves)


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("transform", [None, SoftCap(2.0)], ids=["linear", "softcap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_frozen_host_streams_on_every_backend(make, backend, transform, dtype, monkeypatch):
    scores, target, tau = _problem(dtype, n=40, transform=transform)
    if backend == "triton":
        triton = pytest.importorskip("triton", reason="Triton is not installed")
        if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7):
            pytest.skip("the interpreter of this release does not know NumPy 2.4")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    if backend == "cpu" and not cpu_runs_on(torch.device("cpu"), torch.float32):
        pytest.skip("there is no C compiler")

    def run(name, scores, precision):
        leaf = tau.to(precision).requires_grad_()
        values = make(backend=name)(dt.Rows(scores, target), leaf)
        return values.detach().double(), torch.autograd.grad(values.mean(), leaf)[0].double()

    wide = dt.LinearScores(scores.queries.double(), scores.keys.double(), transform=transform)
    truth = run("reference", wide, torch.float64)
    found = run(backend, scores, torch.float32)
    for ours, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("inputs", [("hidden",), ("hidden", "statistics"), ("logits",)], ids="-".join)
def test_a_network_learns_the_same_streamed_and_from_the_matrix(make, inputs):
    scores, target, _ = _problem(torch.float32, n=40)
    torch.manual_seed(0)
    encoders = {
        "hidden": dt.predictors.HiddenEncoder(4, dropout=0.0),
        "statistics": dt.predictors.StatisticsEncoder(),
        "logits": dt.predictors.LogitEncoder(11),
    }
    chosen = [encoders[name] for name in inputs]
    encoder = chosen[0] if len(chosen) == 1 else dt.predictors.SumEncoder(chosen)
    net = dt.TempNet(encoder, tau_min=0.1, tau_max=2.0).eval()
    rows = dt.Rows(scores, target, scores.queries)

    def gradients(backend):
        net.zero_grad()
        make(backend=backend)(rows, net).mean().backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    for streamed, expected in zip(*(gradients(name) for name in ("torch", "reference")), strict=True):
        torch.testing.assert_close(streamed, expected, rtol=1e-4, atol=1e-6)


def test_outcomes_that_cannot_happen_are_not_smoothed_over():
    scores, target, tau = _problem()
    s = scores.dense()
    banned = torch.full((6, 3), -1e4, dtype=s.dtype)
    loss, leaf = SelectiveSmoothingLoss(), s.clone().requires_grad_()
    wide = loss(dt.Rows(torch.cat([leaf, banned], 1), target), tau)
    narrow = loss(dt.Rows(leaf, target), tau)
    torch.testing.assert_close(wide, narrow)
    _same_gradients(wide, narrow, (leaf,))


def test_scores_that_learn_through_a_cap_use_the_matrix():
    scores, target, tau = _problem(transform=SoftCap(2.0))
    queries = scores.queries.requires_grad_()
    rows = dt.Rows(dt.LinearScores(queries, scores.keys, transform=SoftCap(2.0)), target)
    loss = SelectiveSmoothingLoss(backend="torch")
    assert loss.choose_backend(rows).name == "reference"
    expected = SelectiveSmoothingLoss()(dt.Rows(rows.dense_scores, target), tau)
    _same_gradients(loss(rows, tau), expected, (queries,))


def test_in_an_objective():
    torch.manual_seed(0)
    host = dt.hosts.Classifier(torch.nn.Linear(5, 4))
    predictor = dt.TempNet(dt.predictors.StatisticsEncoder(), tau_min=0.1, tau_max=2.0)
    objective = dt.Objective(host, predictor, dt.LikelihoodLoss(), tau_loss=SelectiveSmoothingLoss())
    objective(torch.randn(9, 5), torch.randint(4, (9,))).loss.backward()
    assert all(p.grad is not None for p in predictor.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("make", "name"), [(SelectiveSmoothingLoss, "alpha"), (ProbabilityWeightedLoss, "drop")]
)
def test_shares_are_checked(make, name):
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=name):
            make(wrong)
    with pytest.raises(TypeError, match=name):
        make("half")
