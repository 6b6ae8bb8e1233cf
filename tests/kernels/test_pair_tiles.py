"""Pairs by tiles, against the score matrix in float64: Triton interpreted on a CPU, compiled on an NVIDIA GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds

from dro_temp.kernels.backends import reference
from dro_temp.kernels.dispatch import triton_backend
from dro_temp.kernels.pairs import PairLogSums, local, pair_log_sums, tiled
from dro_temp.kernels.pairs.exchanged import exchanged_log_sums

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# A tile ends at 32 rows and columns, and at a depth of 32.
HEIGHTS, WIDTHS = (2, 31, 33, 70), (3, 32, 40)

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(scope="module")
def triton():
    module = pytest.importorskip("triton", reason="Triton is not installed")
    if DEVICE.type == "cpu" and tuple(int(part) for part in module.__version__.split(".")[:2]) < (3, 7):
        pytest.skip("the interpreter of this release does not know NumPy 2.4")
    return triton_backend(DEVICE)


def _problem(seed, n, d, dtype, scale=1.0, low=0.05):
    g = torch.Generator().manual_seed(seed)
    features = [torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1) for _ in range(2)]
    taus = [low * (1.0 + torch.rand(n, generator=g)) for _ in range(2)]
    upstream = [torch.randn(n, generator=g) for _ in range(2)]
    return [(scale * x).to(DEVICE, dtype) for x in features], [x.to(DEVICE) for x in taus], upstream


def _run(sums_of, features, taus, upstream, dtype=None):
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in (*features, *taus)]
    sums = sums_of(*leaves)
    u, w = (x.to(sums.rows) for x in upstream)
    return [sums.rows, sums.columns, *torch.autograd.grad(u @ sums.rows + w @ sums.columns, leaves)]


def _assert_close(found, truth, features, low, ulps=64):
    """Values and gradients of temperatures as float32 has them; gradients of features as their precision has them.

    The scores themselves are sums of products: an error of float32's digits of them, over tau, moves a log-sum.
    """
    size = float(features[0].double().norm(dim=1).max() * features[1].double().norm(dim=1).max())
    slack = ulps * torch.finfo(torch.float32).eps * (1.0 + size / low)
    for k, (ours, exact) in enumerate(zip(found, truth, strict=True)):
        scale = exact.abs().max().clamp(min=1.0 if k < 2 else 0.0)
        own = 4 * torch.finfo(features[0].dtype).eps if k in (2, 3) else 0.0
        limit = (slack / low if k > 3 else slack) + own
        worst = ((ours.double() - exact).abs().max() / scale).item()
        assert worst <= limit, (k, worst, limit)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(
    seed=seeds,
    n=st.sampled_from(HEIGHTS),
    d=st.sampled_from(WIDTHS),
    scale=st.sampled_from([1e-2, 1.0, 10.0]),
    low=st.sampled_from([0.005, 0.05, 5.0]),
    rows=st.sampled_from([7, 32, 1000]),
)
@settings(max_examples=5)
def test_both_sides_match_the_score_matrix(triton, dtype, seed, n, d, scale, low, rows):
    features, taus, upstream = _problem(seed, n, d, dtype, scale, low)
    truth = _run(reference.pair_log_sums, features, taus, upstream, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "block_rows", lambda *_, **__: rows)
        patch.setattr(local.PairBlock, "sum_rows", _never)  # that this is by tiles, and not by stripes
        found = _run(lambda *x: pair_log_sums(*x, backend=triton), features, taus, upstream)
    assert [x.dtype for x in found[2:4]] == [dtype, dtype]
    _assert_close(found, truth, features, low)


def _never(*_, **__):
    raise AssertionError


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", [0, 1, 33])
def test_blocks_of_several_processes_add_up(triton, dtype, first):
    n = 40
    features, taus, upstream = _problem(0, n, 8, dtype)
    truth = _run(reference.pair_log_sums, features, taus, upstream, torch.float64)

    def in_two(queries, keys, tau_rows, tau_columns):
        own, parts = (queries.float() * keys.float()).sum(1), []
        for rows in (slice(0, first), slice(first, n)):
            options = {"offset": rows.start, "own_columns": own, "backend": triton}
            parts.append(pair_log_sums(queries[rows], keys, tau_rows[rows], tau_columns, **options))
        columns = torch.logaddexp(parts[0].columns, parts[1].columns)
        return PairLogSums(torch.cat([part.rows for part in parts]), columns)

    _assert_close(_run(in_two, features, taus, upstream), truth, features, 0.05, ulps=256)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", [0, 1, 33])
def test_shares_that_exchange_numbers(triton, dtype, first):
    n = 40
    features, taus, upstream = _problem(0, n, 8, dtype)
    truth = _run(reference.pair_log_sums, features, taus, upstream, torch.float64)
    shares, recorded = (slice(0, first), slice(first, n)), {}

    def share(k, mine):
        def gather(rows):
            recorded.setdefault(k, rows)
            return torch.cat([recorded[i] for i in (0, 1)]) if len(recorded) == 2 else rows.new_ones(n, 6)

        leaves = [x[mine].detach().clone().requires_grad_() for x in (*features, *taus)]
        options = {"offset": mine.start, "gather": gather, "backend": triton}
        sums = exchanged_log_sums(tuple(leaves[:2]), tuple(features), tuple(leaves[2:]), **options)
        total = sum(u[mine].to(x) @ x for u, x in zip(upstream, sums, strict=True))
        return sums, lambda: torch.autograd.grad(total, leaves, retain_graph=True)

    sums, gradients = zip(*(share(*numbered) for numbered in enumerate(shares)), strict=True)
    parts = [[of_share() for of_share in gradients] for _ in range(2)][1]
    found = [torch.cat(x) for x in (*zip(*sums, strict=True), *zip(*parts, strict=True))]
    _assert_close(found, truth, features, 0.05)


def test_an_own_score_far_above_the_others_does_not_overflow(triton):
    features, taus, upstream = _problem(0, 33, 8, torch.bfloat16, scale=30.0, low=0.005)
    truth = _run(reference.pair_log_sums, [features[0], features[0]], taus, upstream, torch.float64)
    found = _run(lambda *x: pair_log_sums(*x, backend=triton), [features[0]] * 2, taus, upstream)
    assert all(x.isfinite().all() for x in found)
    _assert_close(found[:2], truth[:2], features, 0.005)


def test_nan_is_not_hidden(triton):
    features, taus, _ = _problem(0, 40, 8, torch.float32)
    features[0][3] = torch.nan
    sums = pair_log_sums(*features, *taus, backend=triton)
    assert sums.rows.isnan().nonzero()[:, 0].tolist() == [3]
    others = [
        k for k in range(40) if k != 3
    ]  # a row is no part of its own column's sum, only what it is measured by
    assert sums.columns[others].isnan().all()


def test_twice_is_the_same_bit_for_bit(triton):
    features, taus, upstream = _problem(0, 70, 40, torch.bfloat16)
    runs = [_run(lambda *x: pair_log_sums(*x, backend=triton), features, taus, upstream) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_without_gradients_none_are_formed(triton, monkeypatch):
    features, taus, _ = _problem(0, 33, 8, torch.bfloat16)
    monkeypatch.setattr(triton.fused_pairs, "write_pair_gradient", _never)
    with torch.no_grad():
        assert not pair_log_sums(*features, *taus, backend=triton).rows.requires_grad
    taus = [x.requires_grad_() for x in taus]
    sums = pair_log_sums(*features, *taus, backend=triton)  # temperatures alone: sums and slopes suffice
    (sums.rows.sum() + sums.columns.sum()).backward()
    assert all(x.grad.isfinite().all() for x in taus)


@pytest.mark.parametrize("transposed", [False, True])
def test_any_layout_of_features(triton, transposed):
    features, taus, upstream = _problem(0, 33, 8, torch.bfloat16)
    wide = torch.full((33, 20), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    wide[:, 5:13] = features[0]
    strided = [features[0].T.contiguous().T if transposed else wide[:, 5:13], features[1]]
    results = [
        _run(lambda *x: pair_log_sums(*x, backend=triton), f, taus, upstream) for f in (features, strided)
    ]
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
