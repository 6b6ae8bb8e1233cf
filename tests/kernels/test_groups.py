"""False negatives: losses over rows with groups, against formulas with an explicit mask [n m] in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from streams import blocks_of, float64
from torch import nn

import dro_temp as dt
from dro_temp import _faults
from dro_temp import functional as F
from dro_temp.functional import LEFT_OUT, SoftCap, excluded_by_group, support_sizes
from dro_temp.kernels import STATISTICS
from dro_temp.kernels.dispatch import cpu_runs_on
from dro_temp.kernels.exclusions import Exclusions

# Triton's interpreter warns of numbers that a GPU computes silently, in branches that are dropped.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

N, M, D = 9, 13, 4
BACKENDS = ["reference", "torch", "cpu", "triton"]
RHO = 0.2


@pytest.fixture(autouse=True)
def _tiny_blocks():
    with blocks_of(4):
        yield


@pytest.fixture
def interpreted(request, monkeypatch):
    """Skips what this machine cannot run; Triton runs in its interpreter."""
    backend = request.getfixturevalue("backend")
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    if backend == "cpu" and not cpu_runs_on(torch.device("cpu"), torch.float32):
        pytest.skip("no C compiler")


def precision(backend):
    return torch.float32 if backend in ("cpu", "triton") else float64


def excluded(group, column_group, target):
    """As it is defined, one pair after the other."""
    mask = torch.zeros(len(group), len(column_group), dtype=torch.bool)
    for i, g in enumerate(group.tolist()):
        for j, c in enumerate(column_group.tolist()):
            mask[i, j] = j != int(target[i]) and ((g == c and g >= 0) or LEFT_OUT in (g, c))
    return mask


def groups(seed=0, n=N, m=M, kinds=4, pairs=True):
    """Group numbers: some alone, some columns left out, of pairs one row that has no outcomes; and targets."""
    g = torch.Generator().manual_seed(seed)
    group = torch.randint(-1, kinds, (n,), generator=g)
    column_group = torch.randint(-3, kinds, (m,), generator=g)
    group[1], column_group[-1] = LEFT_OUT if pairs else -1, LEFT_OUT
    target = torch.randperm(m - 1, generator=g)[:n]
    return group, column_group, target


def masked(name, scores, mask, target, tau, bias):
    """The value of each row: mask is True at outcomes other than the target."""
    target_score = scores.gather(1, target[:, None])
    h = (scores - target_score) / tau[:, None]
    log_sum = h.masked_fill(~mask, -1e30).logsumexp(1)
    if name == "sigmoid":
        logits = scores / tau[:, None] + bias
        negatives = nn.functional.softplus(logits).masked_fill(~mask, 0.0).sum(1)
        return negatives + nn.functional.softplus(-(target_score / tau[:, None] + bias)).squeeze(1)
    log_g = log_sum - mask.sum(1).clamp(min=1).to(scores.dtype).log()
    return {
        "kl": tau * (log_g + RHO),
        "moving-average": tau * (log_g + RHO),
        "entropic": log_g,
        "infonce": torch.logaddexp(log_sum, torch.zeros_like(log_sum)),
    }[name]


LOSSES = {
    "kl": lambda backend: dt.KLRobustLoss(RHO, backend=backend),
    "moving-average": lambda backend: dt.KLRobustLoss(
        RHO, estimator=dt.LogMovingAverage(40), backend=backend
    ),
    "entropic": lambda backend: dt.EntropicRiskLoss(backend=backend),
    "infonce": lambda backend: dt.InfoNCELoss(backend=backend),
    "sigmoid": lambda backend: dt.SigmoidLoss(-1.0, backend=backend),
}
HEADS = {"plain": (False, None), "bias": (True, None), "cap": (True, SoftCap(2.0))}


def problem(head="plain", dtype=float64, seed=0, n=N, m=M):
    """Leaves: queries, keys, bias, tau."""
    g = torch.Generator().manual_seed(seed)
    queries, keys, bias = (
        torch.randn(*shape, generator=g, dtype=float64) for shape in ((n, D), (m, D), (m,))
    )
    tau = 0.5 + torch.rand(n, generator=g, dtype=float64)
    has_bias, transform = HEADS[head]
    leaves = [queries, keys, bias if has_bias else None, tau]
    return [None if x is None else x.to(dtype).requires_grad_() for x in leaves], transform


def assert_equal(found, expected, dtype):
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if dtype == float64 else {"rtol": 2e-4, "atol": 2e-5}
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.to(float64), b.to(float64), **tolerance)


def _cases(*names):
    """Of every backend; those in which the interpreter shows nothing new are slow."""
    usual = {
        ("kl", "plain"),
        ("kl", "cap"),
        ("infonce", "bias"),
        ("sigmoid", "plain"),
        ("logits",),
        ("statistics",),
    }

    def marks(case):
        return [pytest.mark.slow] if case[0] == "triton" and case[1:] not in usual else []

    return [pytest.param(*case, marks=marks(case)) for case in itertools.product(BACKENDS, *names)]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize(("backend", "loss", "head"), _cases(LOSSES, HEADS))
def test_values_and_gradients_are_those_of_a_mask(backend, loss, head, pairs):
    dtype = precision(backend)
    group, column_group, target = groups(pairs=pairs)
    (queries, keys, bias, tau), transform = problem(head, dtype)
    rows = dt.Rows(
        dt.LinearScores(queries, keys, bias, transform),
        target,
        index=torch.arange(N),
        target_in_support=not pairs,
        group=group,
        column_group=column_group,
    )
    module = LOSSES[loss](backend).to(dtype)
    output = module.evaluate(rows, tau)
    assert output.backend.name == backend
    leaves = [x for x in (queries, keys, bias, tau) if x is not None]
    upstream = torch.linspace(0.5, 2.0, N, dtype=dtype)
    found = [output.values.detach(), *torch.autograd.grad(output.values @ upstream, leaves)]

    (queries, keys, bias, tau), transform = problem(head)
    scores = queries @ keys.T if bias is None else queries @ keys.T + bias
    scores = scores if transform is None else transform(scores)
    mask = ~excluded(group, column_group, target)
    others = mask.scatter(1, target[:, None], False)
    mask = others if pairs or loss in ("infonce", "sigmoid") else mask
    values = masked(loss, scores, mask, target, tau, -1.0)
    counts = others.any(1) if pairs else torch.ones(N, dtype=torch.bool)
    assert not (pairs and counts.all()), "a row without outcomes is among them"
    values = torch.where(counts, values, 0.0)
    leaves = [x for x in (queries, keys, bias, tau) if x is not None]
    assert_equal(found, [values.detach(), *torch.autograd.grad(values @ upstream.double(), leaves)], dtype)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sides", ["same", "apart"])
def test_both_sides_of_pairs(backend, loss, sides, monkeypatch):
    dtype, n = precision(backend), 11
    images = torch.tensor([0, 1, 0, -1, 2, 1, -1, 0, 3, LEFT_OUT, 2])
    texts = images if sides == "same" else images.roll(3)
    (x, y, _, tau), _ = problem(dtype=dtype, n=n, m=n)
    other_tau = tau.detach().flip(0).requires_grad_()
    rows = dt.hosts.pair_rows(x, y, torch.arange(n), group=images if sides == "same" else (images, texts))
    modules = [LOSSES[loss](backend).to(dtype) for _ in range(2)]
    both = tuple(rows.values())
    outputs = modules[0].evaluate_mirrored(modules[1], both, (tau, other_tau))
    assert (outputs is None) == (backend == "reference"), "tiles are shared"
    if outputs is None:
        outputs = [m.evaluate(r, t) for m, r, t in zip(modules, both, (tau, other_tau), strict=True)]
    weights = torch.linspace(0.5, 2.0, n, dtype=dtype)
    total = outputs[0].values @ weights + outputs[1].values @ weights.flip(0)
    leaves = (x, y, tau, other_tau)
    found = [*(o.values.detach() for o in outputs), *torch.autograd.grad(total, leaves)]

    x, y, tau, other_tau = (leaf.detach().double().requires_grad_() for leaf in leaves)
    values, own = [], torch.arange(n)
    for a, b, t, g, c in ((x, y, tau, images, texts), (y, x, other_tau, texts, images)):
        mask = ~excluded(g, c, own) & ~torch.eye(n, dtype=torch.bool)
        v = masked(loss, a @ b.T, mask, own, t, -1.0)
        values.append(torch.where(mask.any(1), v, 0.0))
    total = values[0] @ weights.double() + values[1] @ weights.double().flip(0)
    assert_equal(
        found, [*(v.detach() for v in values), *torch.autograd.grad(total, (x, y, tau, other_tau))], dtype
    )


PREDICTORS = {
    "features": lambda: dt.TempNet(D, tau_min=0.3, tau_max=2.0, prototypes=4, dropout=0.0),
    "logits": lambda: dt.TempNet.for_logits(M, tau_min=0.3, tau_max=2.0, width=5, dropout=0.0),
    "centred": lambda: dt.TempNet.for_logits(M, tau_min=0.3, tau_max=2.0, width=5, dropout=0.0, centred=True),
    "statistics": lambda: dt.TempNet(
        dt.predictors.StatisticsEncoder(width=5, dropout=0.0), tau_min=0.3, tau_max=2.0
    ),
    "optimal": lambda: dt.OptimalTemperature(0.2, tau_min=0.3, tau_max=2.0),
}


def _predicted(backend, predictor, pairs, keys):
    dtype = precision(backend)
    group, column_group, target = groups(pairs=pairs)
    torch.manual_seed(3)
    network = PREDICTORS[predictor]().to(dtype)
    (queries, _, _, _), _ = problem(dtype=dtype)
    keys = keys.to(dtype).requires_grad_()
    scores = dt.LinearScores(queries, keys)
    rows = dt.Rows(
        scores, target, queries.detach(), target_in_support=not pairs, group=group, column_group=column_group
    )
    output = dt.KLRobustLoss(RHO, backend=backend).evaluate(rows, network, statistics=STATISTICS)
    leaves = [queries, keys, *network.parameters()]
    grads = torch.autograd.grad(output.values.mean(), leaves, allow_unused=True, materialize_grads=True)
    counts = rows.valid
    statistics = [output.statistics[name] for name in STATISTICS]
    return [output.values, output.tau[counts], *statistics, *grads]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize(("backend", "predictor"), _cases(PREDICTORS))
def test_what_is_excluded_is_not_read(backend, predictor, pairs):
    """By networks over scores or statistics, nor by the statistics that a loss returns; all backends read the same."""
    (_, keys, _, _), _ = problem()
    found = _predicted(backend, predictor, pairs, keys.detach())
    assert all(x.isfinite().all() for x in found)
    expected = _predicted("reference", predictor, pairs, keys.detach())
    assert_equal(found, expected, precision(backend))
    moved = keys.detach().clone()
    moved[-1] += 3.0  # a column that is left out
    again = _predicted(backend, predictor, pairs, moved)
    assert_equal(again, found, precision(backend))


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_those_of_the_support(name):
    group, column_group, target = groups()
    (queries, keys, _, tau), _ = problem()
    rows = dt.Rows(queries @ keys.T, target, target_in_support=False, group=group, column_group=column_group)
    found = dt.InfoNCELoss().evaluate(rows, tau, statistics=[name]).statistics[name]
    for i in range(N):
        s = (queries @ keys.T)[i][rows.mask[i]].detach()
        if not len(s):
            assert found[i] == 0
            continue
        p = (s / tau[i]).softmax(0)
        entropy = -(p * p.log()).sum()
        expected = {
            "log_sum_exp": (s / tau[i]).logsumexp(0),
            "kl": math.log(len(s)) - entropy,
            "entropy": entropy,
            "max": s.amax(),
            "mean": s.mean(),
            "std": s.std(correction=0),
            "norm": s.norm(),
        }[name]
        torch.testing.assert_close(found[i], expected)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 8), st.integers(1, 12), st.booleans())
def test_sizes_are_counted_without_a_matrix(seed, n, m, in_support):
    g = torch.Generator().manual_seed(seed)
    group, column_group = (torch.randint(-3, 4, (size,), generator=g) for size in (n, m))
    target = torch.randint(m, (n,), generator=g)
    mask = ~excluded(group, column_group, target)
    assert torch.equal(~mask, excluded_by_group(group, column_group, target))
    mask = mask if in_support else mask.scatter(1, target[:, None], False)
    sizes = support_sizes(group, column_group, target, target_in_support=in_support)
    assert torch.equal(sizes, mask.sum(1))
    rows = dt.Rows(
        torch.randn(n, m, generator=g),
        target,
        target_in_support=in_support,
        group=group,
        column_group=column_group,
    )
    assert torch.equal(rows.support_sizes, sizes)
    assert rows.mask is not None
    assert torch.equal(rows.mask, mask)
    assert torch.equal(rows.valid, sizes > 0)


@settings(deadline=None, max_examples=20)
@given(
    seeds, st.sampled_from(["kl", "entropic", "infonce", "sigmoid"]), st.sampled_from(["reference", "torch"])
)
def test_a_column_that_all_exclude_is_as_good_as_gone(seed, name, backend):
    (queries, keys, _, tau), _ = problem(seed=seed)
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(M - 4, (N,), generator=g)
    column_group = torch.full((M,), -1)
    column_group[M - 4 :] = LEFT_OUT
    pairs = {"target_in_support": False, "index": torch.arange(N)}
    module = LOSSES[name](backend)
    without = dt.Rows(dt.LinearScores(queries, keys[: M - 4]), target, **pairs)
    groups_of = {"group": torch.full((N,), -1), "column_group": column_group}
    rows = dt.Rows(dt.LinearScores(queries, keys), target, **pairs, **groups_of)
    results = []
    for r in (rows, without):
        values = module.double()(r, tau)
        results.append([values.detach(), *torch.autograd.grad(values.sum(), (queries, keys, tau))])
    assert_equal(*results, float64)
    assert not results[0][2][M - 4 :].any()


@pytest.mark.parametrize("kinds", [1, 2, 40])
def test_few_and_many_excluded_scores_are_the_same(kinds, monkeypatch):
    """By coordinates and by comparison, on a CPU and as on a device."""
    g = torch.Generator().manual_seed(0)
    group, column_group = (torch.randint(-2, kinds, (size,), generator=g) for size in (30, 50))
    target = torch.randint(50, (30,), generator=g)
    expected = excluded(group, column_group, target)[4:20]
    for many, everywhere in ((0.0, False), (1e9, False), (0.0, True)):
        monkeypatch.setattr("dro_temp.kernels.exclusions._MANY", many)
        monkeypatch.setattr(_faults, "everywhere", everywhere)
        scores = Exclusions(group, column_group, target).fill_(torch.zeros(16, 50), slice(4, 20), 1.0)
        assert torch.equal(scores.bool(), expected)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_radius_is_checked_against_the_fewest_outcomes(backend):
    rows = dt.Rows(
        dt.LinearScores(torch.randn(4, 3), torch.randn(8, 3)),
        torch.arange(4),
        target_in_support=False,
        group=torch.tensor([0, -1, -1, -1]),
        column_group=torch.tensor([0, 0, 0, 0, 0, 1, 2, 3]),
    )
    assert rows.support_sizes.tolist() == [3, 7, 7, 7]
    dt.KLRobustLoss(1.0, backend=backend)(rows, 1.0)
    with pytest.raises(ValueError, match=r"rho=1.2 with m=3 outcomes"):
        dt.KLRobustLoss(1.2, backend=backend)(rows, 1.0)
    estimated = dt.KLRobustLoss(1.2, estimator=dt.LogMovingAverage(40), backend=backend).eval()
    estimated(rows, 1.0)


def test_a_radius_is_checked_late_on_a_device(monkeypatch):
    monkeypatch.setattr(_faults, "everywhere", True)
    monkeypatch.setattr(_faults, "pending", _faults._Pending())
    group = torch.tensor([0, 0, -1])
    rows = dt.Rows(
        torch.randn(3, 3), torch.arange(3), target_in_support=False, group=group, column_group=group
    )
    loss = dt.KLRobustLoss(0.5)
    loss(rows, 1.0)
    with pytest.raises(ValueError, match=r"rho=0.5 with m=1 outcomes"):
        loss(rows, 1.0)


def test_wrong_groups_are_refused():
    scores, target = torch.randn(3, 4), torch.arange(3)
    with pytest.raises(ValueError, match="received no column_group"):
        dt.Rows(scores, target, group=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"column_group of shape \[4\]"):
        dt.Rows(scores, target, group=torch.arange(3), column_group=torch.arange(3))
    with pytest.raises(TypeError, match="group of an integer dtype"):
        dt.Rows(scores, target, group=torch.zeros(3), column_group=torch.arange(4))
    with pytest.raises(ValueError, match="beside groups"):
        dt.Rows(
            scores, target, group=target, column_group=torch.arange(4), target_distribution=scores.softmax(1)
        )


def test_selected_and_moved_rows_keep_their_groups():
    group, column_group, target = groups()
    rows = dt.Rows(torch.randn(N, M), target, target_in_support=False, group=group, column_group=column_group)
    some = torch.tensor([4, 0, 2])
    for part in (rows.select(some), rows.select(slice(2, 5)), rows.dense(), rows.to("cpu"), rows.detached()):
        fresh = dt.Rows(
            part.scores, part.target, target_in_support=False, group=part.group, column_group=column_group
        )
        assert torch.equal(part.support_sizes, fresh.support_sizes)
    assert rows.support_sizes is not None
    assert torch.equal(rows.select(some).support_sizes, rows.support_sizes[some])


def test_groups_that_change_in_place_are_read_anew():
    group = torch.tensor([0, 0, 0, 1])
    rows = dt.Rows(torch.randn(4, 4), torch.arange(4), group=group, column_group=group)
    assert rows.support_sizes.tolist() == [2, 2, 2, 4]
    group.copy_(torch.arange(4))
    assert rows.support_sizes.tolist() == [4, 4, 4, 4]


def test_an_optimal_temperature_is_that_of_the_rows_own_support():
    group = torch.tensor([0, 0, 0, 1, 2, 3])
    torch.manual_seed(0)
    rows = dt.Rows(torch.randn(6, 6), torch.arange(6), group=group, column_group=group)
    predictor = dt.OptimalTemperature(1.2, tau_min=0.001, tau_max=100.0)
    tau = predictor.predict(rows)
    kl = F.kl_divergence(rows.margins, tau, rows.mask)
    torch.testing.assert_close(kl, torch.full((6,), 1.2), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"rho=1.4 with m=4 outcomes"):
        dt.OptimalTemperature(1.4, tau_min=0.001, tau_max=100.0).predict(rows)
    of_six = dt.OptimalTemperature.for_entropy(1.0, outcomes=6, tau_min=0.001, tau_max=100.0)
    with pytest.raises(ValueError, match="expected rows of 6 outcomes, received 4"):
        of_six.predict(rows)
