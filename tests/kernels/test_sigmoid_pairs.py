"""Logistic losses of pairs, streamed, against the score matrix and ordinary autograd in float64.

By stripes in plain PyTorch, and by tiles: Triton interpreted on a CPU, compiled on an NVIDIA GPU.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from streams import blocks_of, float64
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dro_temp as dt
from dro_temp.functional import Scale, SoftCap
from dro_temp.kernels import byte_budget
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.protocol import SideLogits
from dro_temp.kernels.dispatch import triton_backend
from dro_temp.kernels.pairs import sigmoid, tiled
from dro_temp.kernels.pairs.sigmoid import exchanged_sigmoid_losses, sigmoid_losses

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Both sides share their logits, as in SigLIP, or have their own.
SHARED = [True, False]

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(scope="module")
def triton():
    module = pytest.importorskip("triton", reason="Triton is not installed")
    if DEVICE.type == "cpu" and tuple(int(part) for part in module.__version__.split(".")[:2]) < (3, 7):
        pytest.skip("the interpreter of this release does not know NumPy 2.4")
    return triton_backend(DEVICE)


@pytest.fixture(scope="module")
def backends(triton):
    return {"torch": torch_backend, "triton": triton}


def _problem(seed, n, d, dtype, *, shared, low=0.1, bias=-3.0):
    """Features of both sides, (tau, bias) of both, and the gradient of their values."""
    g = torch.Generator().manual_seed(seed)
    features = [torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1) for _ in range(2)]
    taus = [low * (1.0 + torch.rand(1 if shared else n, generator=g)).expand(n) for _ in range(2)]
    numbers = [taus[0], torch.tensor([bias]), taus[0 if shared else 1], torch.tensor([bias + 1.0 - shared])]
    upstream = [torch.randn(n, generator=g).to(DEVICE) for _ in range(2)]
    work = float64 if dtype == float64 else torch.float32
    return [x.to(DEVICE, dtype) for x in features], [x.to(DEVICE, work) for x in numbers], upstream


def _by_matrix(x, y, tau, bias, tau_other, bias_other):
    """What `SigmoidLoss` computes from the matrix, which its own tests hold against loops."""
    target, values = torch.arange(len(x), device=x.device), []
    for scores, t, b in ((x @ y.T, tau, bias), (y @ x.T, tau_other, bias_other)):
        loss = dt.SigmoidLoss()
        loss.bias = b
        values.append(loss.values(dt.Rows(scores, target, target_in_support=False), t))
    return tuple(values)


def _run(losses_of, features, numbers, upstream, dtype=None):
    """Values of both sides; gradients of features, temperatures and biases."""
    leaves = [x.detach().clone().to(dtype or x.dtype).requires_grad_() for x in (*features, *numbers)]
    values = losses_of(*leaves)
    total = sum(u.to(x) @ x for u, x in zip(upstream, values, strict=True))
    return [*values, *torch.autograd.grad(total, leaves)]


def _by(backend):
    def losses_of(x, y, tau, bias, tau_other, bias_other):
        target = torch.arange(len(x), device=x.device)
        return sigmoid_losses(x, y, target, (tau, bias), (tau_other, bias_other), backend=backend)

    return losses_of


@pytest.fixture(autouse=True)
def _biases_as_tensors(monkeypatch):
    """The loss takes a bias that is no parameter, whose gradient is then that of what it was made from."""
    monkeypatch.setattr(dt.SigmoidLoss, "__setattr__", _set_plainly)


def _set_plainly(module, name, value):
    if name == "bias" and not isinstance(value, torch.nn.Parameter):
        module._parameters.pop("bias", None)
    torch.nn.Module.__setattr__(module, name, value)


def _assert_close(found, truth, dtype, low, ulps=32):
    """An error of scores by their last digits, over tau, is one of logits; gradients of features are rounded once."""
    slack = ulps * torch.finfo(found[0].dtype).eps / low
    # Terms of a gradient may cancel: a positive that is certain to be missed, and a negative that is.
    least = [0.0, 0.0, 0.1 / low, 0.1 / low, 0.1 / low, 1.0, 0.1 / low, 1.0]
    for k, (ours, exact) in enumerate(zip(found, truth, strict=True)):
        own = 4 * torch.finfo(dtype).eps if k in (2, 3) else 0.0
        worst = ((ours.double() - exact).abs().max() / exact.abs().max().clamp(min=least[k])).item()
        assert worst <= slack + own, (k, worst, slack + own)


# Both sides


@pytest.mark.parametrize("shared", SHARED)
@given(
    seed=seeds,
    n=st.sampled_from([1, 2, 5, 9]),
    step=st.integers(1, 4),
    budget=st.sampled_from([0, 2**30]),
    low=st.sampled_from([0.01, 0.3, 5.0]),
    bias=st.sampled_from([-10.0, 0.0, 3.0]),
)
@settings(max_examples=25)
def test_stripes_match_the_score_matrix(shared, seed, n, step, budget, low, bias):
    problem = _problem(seed, n, 3, float64, shared=shared, low=low, bias=bias)
    truth = _run(_by_matrix, *problem)
    with blocks_of(step), byte_budget(budget):
        found = _run(_by(torch_backend), *problem)
    for k, (ours, exact) in enumerate(zip(found, truth, strict=True)):
        # Terms of a gradient may cancel: a positive that is certain to be missed, and a negative that is.
        scale = exact.abs().max() if k < 2 else exact.abs().max().clamp(min=0.01)
        assert ((ours - exact).abs().max() / scale).item() <= 1e-13 / min(low, 1.0) ** (1 if k < 2 else 2), k


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", SHARED)
def test_stripes_of_low_precision(dtype, shared):
    problem = _problem(0, 33, 8, dtype, shared=shared)
    with blocks_of(10):
        found = _run(_by(torch_backend), *problem)
    assert [x.dtype for x in found[2:4]] == [dtype, dtype]
    _assert_close(found, _run(_by_matrix, *problem, float64), dtype, 0.1)


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)  # float16 goes by stripes
@given(
    seed=seeds,
    n=st.sampled_from([2, 31, 40]),
    d=st.sampled_from([3, 32, 40]),
    low=st.sampled_from([0.02, 0.1, 5.0]),
    bias=st.sampled_from([-10.0, 0.0]),
    rows=st.sampled_from([16, 1000]),
)
@settings(max_examples=2)
def test_tiles_match_the_score_matrix(triton, dtype, shared, seed, n, d, low, bias, rows):
    problem = _problem(seed, n, d, dtype, shared=shared, low=low, bias=bias)
    truth = _run(_by_matrix, *problem, float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "block_rows", lambda *_, **__: rows)
        patch.setattr(sigmoid.SigmoidBlock, "_stripes", _never)  # that this is by tiles
        found = _run(_by(triton), *problem)
    assert [x.dtype for x in found[2:4]] == [dtype, dtype]
    _assert_close(found, truth, dtype, low)


def _never(*_, **__):
    raise AssertionError


def test_float16_keeps_the_gradient_of_pairs_that_are_learned(triton):
    """All gradients of scores are 1e-8 then, of which float16 has one bit."""
    x = 3.0 * torch.eye(32, 40)
    features = [x.to(DEVICE, torch.float16).requires_grad_() for _ in range(2)]
    tau = torch.full((32,), 0.25, device=DEVICE)
    # s / tau + b is 18 for pairs and -18 elsewhere.
    exact = 65536.0 * torch.sigmoid(torch.tensor(-18.0, dtype=float64)) / 0.25
    rows = dt.Rows(dt.LinearScores(*features), torch.arange(32, device=DEVICE), target_in_support=False)
    loss = dt.SigmoidLoss(-18.0, backend="triton").to(DEVICE)
    (65536.0 * loss(rows, tau).sum()).backward()
    own = features[0].grad.double().diagonal()
    torch.testing.assert_close(own, (-3.0 * exact).expand(32).to(own), rtol=2e-3, atol=0.0)


def test_losses_of_confident_negatives_keep_their_digits(triton):
    """log(1 + e^-30) is 1e-13, of which 1 + e^-30 has no digit in float32."""
    features = [torch.zeros(33, 8, device=DEVICE)] * 2
    nowhere = torch.full((33,), -1, device=DEVICE)
    for bias in (-30.0, 3.0):
        side = SideLogits(torch.ones(33, device=DEVICE), torch.tensor([bias], device=DEVICE))
        options = {"rows": side, "columns": side, "slopes": True}
        exact = torch.tensor(bias, dtype=float64).exp()
        # The rounding of an exponent is a relative error of its exponential.
        rtol = (4 + abs(bias)) * torch.finfo(torch.float32).eps
        for sums in triton.fused_sigmoid.sum_sigmoid_tiles(*features, nowhere, **options):
            for found, of_one in ((sums[0], exact.log1p()), (sums[1], exact / (1 + exact))):
                torch.testing.assert_close(found.cpu().double(), 33 * of_one.expand(33), rtol=rtol, atol=0.0)


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_twice_is_the_same_bit_for_bit(backends, name):
    problem = _problem(0, 40, 8, torch.bfloat16, shared=False)
    with blocks_of(16):
        runs = [_run(_by(backends[name]), *problem) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_nan_is_not_hidden(backends, name):
    features, numbers, _ = _problem(0, 40, 8, torch.float32, shared=False)
    features[0][3] = torch.nan
    rows, columns = _by(backends[name])(*features, *numbers)
    assert rows.isnan().nonzero()[:, 0].tolist() == [3]
    assert columns.isnan().all()


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_only_what_is_wanted_is_formed(backends, name, monkeypatch):
    features, numbers, upstream = _problem(0, 20, 8, torch.bfloat16, shared=False)
    block = sigmoid.TiledSigmoidBlock if name == "triton" else sigmoid.SigmoidBlock
    seen, sums = [], block.sums

    def recorded(self, *args, slopes, store):
        seen.append((slopes, store))
        return sums(self, *args, slopes=slopes, store=store)

    monkeypatch.setattr(block, "sums", recorded)
    with torch.no_grad():
        leaves = [x.clone().requires_grad_() for x in (*features, *numbers)]
        assert not _by(backends[name])(*leaves)[0].requires_grad
    whole = _run(_by(backends[name]), features, numbers, upstream)
    # Temperatures and biases alone: sums suffice.
    monkeypatch.setattr(block, "gradients", _never)
    of_numbers = _run(lambda *x: _by(backends[name])(*features, *x), [], numbers, upstream)
    assert all(torch.equal(*pair) for pair in zip(of_numbers[2:], whole[4:], strict=True))
    assert seen == [(False, None), (True, None if name == "triton" else "pair scores"), (True, None)]


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_a_second_backward_and_one_side_of_the_gradients(backends, name):
    features, numbers, upstream = _problem(0, 20, 8, torch.float32, shared=False)
    truth = _run(_by(backends[name]), features, numbers, upstream)
    x, y = features[0].clone().requires_grad_(), features[1].clone().requires_grad_()
    values = _by(backends[name])(x, y, *numbers)
    total = sum(u @ v for u, v in zip(upstream, values, strict=True))
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(total, x, retain_graph=True)[0], truth[2])
    values = _by(backends[name])(features[0], y, *numbers)
    (of_keys,) = torch.autograd.grad(sum(u @ v for u, v in zip(upstream, values, strict=True)), y)
    torch.testing.assert_close(of_keys, truth[3])


def test_second_derivatives_and_transforms_are_refused():
    features, numbers, _ = _problem(0, 5, 3, float64, shared=True)
    x = features[0].requires_grad_()
    rows, _ = _by(torch_backend)(x, features[1], *numbers)
    with pytest.raises(RuntimeError, match="expected a first derivative"):
        torch.autograd.grad(rows.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.grad(lambda x: _by(torch_backend)(x, features[1], *numbers)[0].sum())(features[0])


# Several processes


@pytest.mark.parametrize(
    ("name", "dtype", "first"),
    [
        *(("torch", float64, first) for first in (0, 1, 33)),
        ("triton", torch.bfloat16, 33),
        *(pytest.param("triton", torch.bfloat16, first, marks=pytest.mark.slow) for first in (0, 1)),
    ],
)
@pytest.mark.parametrize("shared", SHARED)
def test_shares_that_exchange_numbers(backends, name, dtype, first, shared):
    n = 40
    features, numbers, upstream = _problem(0, n, 8, dtype, shared=shared)
    truth = _run(_by_matrix, features, numbers, upstream, float64)
    shares, recorded = (slice(0, first), slice(first, n)), {}

    def share(k, mine):
        def gather(rows):
            recorded.setdefault(k, rows)
            return torch.cat([recorded[i] for i in (0, 1)]) if len(recorded) == 2 else rows.new_ones(n, 4)

        x, y = (f[mine].detach().clone().requires_grad_() for f in features)
        tau, bias, tau_other, bias_other = (
            (f if len(f) == 1 else f[mine]).detach().clone().requires_grad_() for f in numbers
        )
        values = exchanged_sigmoid_losses(
            (x, y),
            tuple(features),
            torch.arange(n, device=DEVICE)[mine],
            ((tau, bias), (tau_other, bias_other)),
            gather=gather,
            backend=backends[name],
        )
        total = sum(u[mine].to(v) @ v for u, v in zip(upstream, values, strict=True))
        leaves = [x, y, tau, bias, tau_other, bias_other]
        return values, lambda: torch.autograd.grad(total, leaves, retain_graph=True)

    values, gradients = zip(*(share(*numbered) for numbered in enumerate(shares)), strict=True)
    parts = [[of_share() for of_share in gradients] for _ in range(2)][1]
    found = [torch.cat(x) for x in (*zip(*values, strict=True), *zip(*parts, strict=True))]
    for k in (5, 7):  # a bias belongs to all processes, which add up
        found[k] = found[k].sum().view(1)
    _assert_close(found, truth, dtype, 0.1)


# One side: rows of a classifier


def _classifier(seed, n=7, m=11, d=3, *, biased=True):
    g = torch.Generator().manual_seed(seed)
    queries, keys, bias = (
        torch.randn(*shape, generator=g, dtype=float64) for shape in ((n, d), (m, d), (m,))
    )
    tau = 0.3 + torch.rand(n, generator=g, dtype=float64)
    return [queries, keys, tau, *([bias] if biased else [])], torch.randint(m, (n,), generator=g)


def _of_rows(loss, leaves, target, transform=None, weight=None, inside=True):
    queries, keys, tau, *bias = (x.detach().clone().requires_grad_() for x in leaves)
    scores = dt.LinearScores(queries, keys, bias[0] if bias else None, transform)
    rows = dt.Rows(scores, target, target_in_support=inside, weight=weight)
    output = loss.evaluate(rows, tau)
    upstream = torch.linspace(-1.0, 2.0, len(queries), dtype=float64)
    wanted = [queries, keys, tau, *bias, loss.bias]
    return output.backend.name, [output.values, *torch.autograd.grad(output.values @ upstream, wanted)]


@pytest.mark.parametrize("transform", [None, SoftCap(2.0), Scale(0.3)])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("budget", [0, 2**30])
def test_rows_match_the_score_matrix(transform, biased, weighted, budget):
    leaves, target = _classifier(0, biased=biased)
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 1.0, 3.0], dtype=float64) if weighted else None
    if weight is not None:
        leaves[0][1], target[1] = torch.nan, -100
    loss = dt.SigmoidLoss(-1.0, backend="reference").double()
    _, truth = _of_rows(loss, leaves, target, transform, weight)
    loss.backend = "torch"
    with blocks_of(3), byte_budget(budget):
        name, found = _of_rows(
            loss, leaves, target, transform, weight, inside=False
        )  # all columns count anyway
    assert name == "torch"
    for ours, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("transform", [None, SoftCap(2.0)])
def test_an_impossible_outcome_counts_nothing(transform):
    leaves, target = _classifier(0)
    leaves[3][4] = -torch.inf
    target[target == 4] = 0
    loss = dt.SigmoidLoss(-1.0, backend="reference").double()
    _, truth = _of_rows(loss, leaves, target, transform)
    loss.backend = "torch"
    _, found = _of_rows(loss, leaves, target, transform)
    for ours, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-13)
    target[0] = 4
    assert transform or _of_rows(loss, leaves, target)[1][0][0] == torch.inf


def test_rows_by_tiles(triton):
    leaves, target = _classifier(0, n=40, m=70, biased=False)
    low = [x.to(DEVICE, torch.float32) for x in leaves]
    side = low[2], torch.tensor([-1.0], device=DEVICE)
    upstream = torch.linspace(-1.0, 2.0, 40, device=DEVICE)
    found = []
    for backend, dtype in ((torch_backend, float64), (triton, torch.float32)):
        wanted = [x.to(dtype).requires_grad_() for x in (*low[:2], *side)]
        values, none = sigmoid_losses(*wanted[:2], target.to(DEVICE), tuple(wanted[2:]), backend=backend)
        assert none is None
        found.append([values, *torch.autograd.grad(values @ upstream.to(values), wanted)])
    for ours, exact in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("why", ["statistics", "predictor", "distribution", "plain function", "matrix"])
def test_what_needs_the_matrix_gets_it(why):
    leaves, target = _classifier(0)
    queries, keys, tau, bias = leaves
    scores = dt.LinearScores(queries, keys, bias, torch.tanh if why == "plain function" else None)
    spread = dt.functional.smoothed_distribution(target, 11, 0.1) if why == "distribution" else None
    rows = dt.Rows(scores.dense() if why == "matrix" else scores, target, target_distribution=spread)
    loss = dt.SigmoidLoss(-1.0).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dro_temp.losses.log_mean_exp.SMALL_MATRIX", 0)
        if why == "predictor":
            tau = dt.TempNet(
                dt.predictors.StatisticsEncoder(), tau_min=0.1, tau_max=2.0, dropout=0.0
            ).double()
        statistics = ("entropy",) if why == "statistics" else ()
        output = loss.evaluate(rows, tau, statistics=statistics)
    assert output.backend.name == "reference"
    direct = loss.values(rows, output.tau)
    torch.testing.assert_close(output.values, direct)
    assert set(output.statistics) == set(statistics)


# Whole objectives, and memory


class Largest(TorchDispatchMode):
    """Records how many numbers the largest tensor had."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.numbers = max(self.numbers, *found, 0)
        return result


@pytest.mark.parametrize("own", [False, True])
def test_an_objective_holds_no_score_matrix(own):
    torch.manual_seed(0)
    n, host = 3000, dt.hosts.TwoTower(torch.nn.Linear(6, 8), torch.nn.Linear(5, 8))
    objective = dt.recipes.siglip(host)
    if own:
        losses = {view: dt.SigmoidLoss(-9.0) for view in host.views}
        objective = dt.Objective(
            host, {v: dt.TempNet(8, tau_min=0.1, tau_max=1.0) for v in host.views}, losses
        )
    batch = torch.randn(n, 6), torch.randn(n, 5)
    with byte_budget(0), Largest() as largest:
        output = objective(*batch)
        output.loss.backward()
    objective.commit()
    assert {choice.name for choice in output.backend.values()} <= {"cpu", "torch"}
    assert n * 8 <= largest.numbers < n * n / 2


def test_an_objective_by_tiles_and_by_the_matrix(triton):
    torch.manual_seed(0)
    host = dt.hosts.TwoTower(torch.nn.Linear(6, 8), torch.nn.Linear(5, 8)).to(DEVICE)
    objective = dt.recipes.siglip(host).to(DEVICE)
    batch, found = (torch.randn(40, 6, device=DEVICE), torch.randn(40, 5, device=DEVICE)), []
    for backend in ("reference", "triton"):
        for loss in objective.losses.values():
            loss.backend = backend
        objective.zero_grad()
        output = objective(*batch)
        output.loss.backward()
        objective.commit()
        assert {choice.name for choice in output.backend.values()} == {backend}
        found.append([output.loss.detach(), *(p.grad.clone() for p in objective.parameters())])
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)
    del triton
