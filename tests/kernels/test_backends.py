"""The fused passes against the plain ones: C on processors; Triton interpreted there, compiled on an NVIDIA GPU."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from streams import product_rows

from dro_temp.functional.statistics import IMPOSSIBLE_BELOW, NOT_AN_OUTCOME
from dro_temp.functional.transforms import SoftCap
from dro_temp.kernels import STATISTICS, byte_budget
from dro_temp.kernels.backends import reference
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.protocol import ColumnSums
from dro_temp.kernels.dispatch import cpu_backend, cpu_runs_on, triton_backend
from dro_temp.kernels.pairs import local
from dro_temp.kernels.rows import autograd, chunked

DEVICES = [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
DTYPES = [torch.float32, torch.float64]
MOMENTS = ("max", "mean", "std", "norm")
# A row's tile ends at 4096 columns, a stripe's at 128, a chunk at 256 rows.
WIDTHS, HEIGHTS = (1, 2, 5, 33, 4097), (1, 2, 17, 257)

pytestmark = [
    # The interpreter computes both branches of a choice, and lets NumPy complain about the one that is not taken.
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.parametrize("device", DEVICES, ids=str, scope="module"),
]


def _no_sums(like: torch.Tensor) -> ColumnSums:
    """Column sums before the first stripe."""
    zero = torch.zeros_like(like)
    return ColumnSums(torch.full_like(like, -torch.inf), zero, zero.clone())


@pytest.fixture(scope="module", params=["cpu", "triton"])
def fused(request, device):
    if request.param == "cpu":
        if not cpu_runs_on(device, torch.float32):
            pytest.skip("there is no C compiler, or scores are on a GPU")
        return cpu_backend(device, torch.float32)
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    interpreted = device.type == "cpu"
    if interpreted and tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7):
        pytest.skip("the interpreter of this release does not know NumPy 2.4")
    return triton_backend(device)


def _draw(data, heights, widths, dtype, device):
    """Scores inside a larger buffer of NaN, and a temperature for each row and each column."""
    n, m = data.draw(st.sampled_from(heights)), data.draw(st.sampled_from(widths))
    g = torch.Generator().manual_seed(data.draw(seeds))
    buffer = torch.full((n + 2, m + 3), torch.nan, dtype=dtype)
    scores = data.draw(st.sampled_from([1e-2, 1.0, 30.0, 1e4])) * torch.randn(n, m, generator=g, dtype=dtype)
    if data.draw(st.booleans()):
        scores[torch.rand(n, m, generator=g) < 0.2] = NOT_AN_OUTCOME
    buffer[1:-1, :m] = scores
    low, high = math.log(0.005), math.log(50.0)
    tau_rows, tau_columns = (
        (low + (high - low) * torch.rand(k, generator=g, dtype=dtype)).exp().to(device) for k in (n, m)
    )
    buffer = buffer.to(device)
    return buffer, buffer[1:-1, :m], tau_rows, tau_columns


def _close(found, expected, scale=0.0):
    """Equal up to a few roundings, of numbers as large as `scale` if they were added up."""
    eps = torch.finfo(expected.dtype).eps
    slack = 64 * eps * (expected.abs() + scale) + 16 * eps
    assert (found - expected).abs().le(slack).all(), (found - expected).abs().div(slack).max()


def _surroundings_untouched(block):
    base = block._base
    assert base.isnan().sum() == base.numel() - block.numel()


# --- Each pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
@settings(max_examples=25)
def test_softmax_partials_and_row_sums(fused, device, dtype, data):
    _, scores, tau, _ = _draw(data, (1, 2, 3), WIDTHS, dtype, device)
    expected = torch_backend.softmax_partials_(scores.clone(), tau, mean_excess=True)
    again = scores.clone()
    found = fused.softmax_partials_(scores, tau, mean_excess=True)
    assert found.weights is scores
    _surroundings_untouched(scores)
    for name in ("weights", "row_max", "sum_exp", "mean_excess"):
        _close(getattr(found, name), getattr(expected, name))
    alone = fused.softmax_partials_(again, tau, mean_excess=False)
    assert alone.mean_excess is None
    for name in ("weights", "row_max", "sum_exp"):
        assert torch.equal(getattr(alone, name), getattr(found, name))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
@settings(max_examples=25)
def test_row_sums(fused, device, dtype, data):
    buffer, scores, tau, _ = _draw(data, (1, 2, 3), WIDTHS, dtype, device)
    before = buffer.clone()
    expected = torch_backend.row_sums(scores, tau)
    found = fused.row_sums(scores, tau)
    assert torch.equal(buffer.nan_to_num(), before.nan_to_num())
    for name in ("row_max", "sum_exp", "mean_excess"):
        _close(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
@settings(max_examples=25)
def test_profile(fused, device, dtype, data):
    buffer, scores, _, _ = _draw(data, (1, 2, 3), WIDTHS[1:], dtype, device)
    scores.clamp_(min=-1e5)  # the square of what stands for "not an outcome" is beyond float32
    before = buffer.clone()
    expected, found = torch_backend.profile(scores.double()), fused.profile(scores)
    assert torch.equal(buffer.nan_to_num(), before.nan_to_num())
    size = scores.abs().max()
    for name in ("row_max", "sum_exp", "mean_excess", "mean", "std"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name).to(dtype), rtol=2e-5, atol=float(1e-6 * (size + 1))
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
@settings(max_examples=25)
def test_moments(fused, device, dtype, data):
    _, scores, _, _ = _draw(data, (1, 2, 3), WIDTHS[1:], dtype, device)
    n, m = scores.shape
    target = torch.tensor(data.draw(st.lists(st.integers(0, m - 1), min_size=n, max_size=n)), device=device)
    with_target = data.draw(st.booleans())
    plain = torch_backend.moments(scores, target, with_target, MOMENTS)
    found = fused.moments(scores, target, with_target, MOMENTS)
    for i, row in enumerate(scores.double()):
        row = row if with_target else torch.cat([row[: target[i]], row[target[i] + 1 :]])
        row = row[row >= row.amax() - IMPOSSIBLE_BELOW]
        exact = dict(zip(MOMENTS, (row.amax(), row.mean(), row.std(correction=0), row.norm()), strict=True))
        for name, value in exact.items():
            if not plain[name][i].isfinite():  # the square of a sentinel overflows float32
                continue
            slack = 32 * torch.finfo(dtype).eps * (value.abs() + row.abs().amax())
            assert (found[name][i] - value).abs() <= slack + (plain[name][i] - value).abs(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_standard_deviation_far_from_zero(fused, device, dtype):
    g = torch.Generator().manual_seed(0)
    scores = (1e4 + torch.randn(3, 9000, generator=g, dtype=torch.float64)).to(device, dtype)
    target = torch.zeros(3, dtype=torch.long, device=device)
    exact = torch_backend.moments(scores.double(), target, False, ("mean", "std"))
    found = fused.moments(scores, target, False, ("mean", "std"))
    torch.testing.assert_close(found["std"].double(), exact["std"], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(found["mean"].double(), exact["mean"], rtol=2e-7, atol=0.0)


def test_only_wanted_moments(fused, device):
    scores, target = torch.randn(2, 3, device=device), torch.zeros(2, dtype=torch.long, device=device)
    assert fused.moments(scores, target, True, ("entropy",)) == {}
    assert set(fused.moments(scores, target, True, frozenset({"std", "kl"}))) == {"std"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
@settings(max_examples=12)
def test_sum_columns(fused, device, dtype, data):
    buffer, scores, _, tau = _draw(data, HEIGHTS, (1, 5, 129), dtype, device)
    before, found, expected = buffer.clone(), _no_sums(tau), _no_sums(tau)
    for _ in range(data.draw(st.integers(1, 2))):
        torch_backend.column_sums_(scores, tau, expected)
        fused.column_sums_(scores, tau, found)
        assert torch.equal(buffer.nan_to_num(), before.nan_to_num())
    _close(found.column_max, expected.column_max)
    _close(found.sum_exp, expected.sum_exp)
    size = torch.zeros_like(tau).addcmul_(expected.sum_exp, scores.abs().amax(0))
    _close(found.moment, expected.moment, scale=size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_column_sums_do_not_depend_on_stripes_or_order(fused, device, dtype):
    # More rows than one pass over partial sums takes.
    g = torch.Generator().manual_seed(0)
    scores = (20 * torch.randn(4400, 7, generator=g, dtype=dtype)).to(device)
    tau = torch.tensor([0.005, 0.02, 0.1, 0.5, 1.0, 7.0, 50.0], dtype=dtype, device=device)
    exact = _no_sums(tau.double())
    torch_backend.column_sums_(scores.double(), tau.double(), exact)
    shuffled = scores[torch.randperm(4400, generator=g).to(device)]
    for rows, sizes in ((scores, (4400,)), (scores, (1, 17, 4382)), (shuffled, (260, 3, 4137))):
        sums = _no_sums(tau)
        for stripe in rows.split(sizes):
            fused.column_sums_(stripe, tau, sums)
        _close(sums.column_max, exact.column_max.to(dtype))
        _close(sums.sum_exp, exact.sum_exp.to(dtype))
        _close(sums.moment, exact.moment.to(dtype), scale=exact.sum_exp.to(dtype) * scores.abs().amax())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
@settings(max_examples=20)
def test_couple(fused, device, dtype, data):
    _, scores, tau_rows, tau_columns = _draw(data, (1, 2, 17), (1, 5, 129), dtype, device)
    share_rows, share_columns = torch.randn_like(tau_rows), torch.randn_like(tau_columns)
    sides = (tau_rows, scores.amax(1), share_rows, tau_columns, scores.amax(0), share_columns)
    expected = torch_backend.pair_logits_grad_(scores.clone(), *sides)
    found = fused.pair_logits_grad_(scores, *sides)
    assert found is scores
    _surroundings_untouched(scores)
    _close(found, expected, scale=share_rows.abs()[:, None] + share_columns.abs())


def test_one_temperature_for_all(fused, device):
    scores = torch.randn(3, 5, device=device)
    one = torch.full((1,), 0.3, device=device)
    found = fused.softmax_partials_(scores.clone(), one.expand(3), mean_excess=True)
    assert torch.equal(
        found.weights, fused.softmax_partials_(scores.clone(), one.repeat(3), mean_excess=True).weights
    )


def test_what_is_not_finite(fused, device):
    scores = torch.randn(4, 6, device=device)
    scores[0, 1], scores[1, 2], scores[2, 3] = torch.nan, torch.inf, -torch.inf
    tau = torch.ones(4, device=device)
    found = fused.softmax_partials_(scores.clone(), tau, mean_excess=True)
    assert found.sum_exp.isnan().tolist() == [True, True, False, False]
    assert found.mean_excess.isfinite().tolist() == [False, False, True, True]
    assert found.weights[2, 3] == 0.0
    sums = _no_sums(torch.ones(6, device=device))
    fused.column_sums_(scores, torch.ones(6, device=device), sums)
    assert sums.sum_exp.isnan().tolist() == [False, True, True, False, False, False]


def test_no_rows(fused, device):
    nothing = torch.empty(0, 4, device=device)
    assert fused.softmax_partials_(nothing, nothing[:, 0], mean_excess=False).sum_exp.shape == (0,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a block of 2^31 scores is for a GPU")
def test_offsets_beyond_32_bits(fused, device):
    if torch.cuda.mem_get_info()[0] < 2**35:
        pytest.skip("needs 32 GiB")
    _check_last_row(fused, 2**13 + 8, 2**18, device)


def test_last_row(fused, device):
    _check_last_row(fused, 19, 40, device)


def _check_last_row(fused, n, m, device):
    scores = torch.zeros(n, m, device=device)
    scores[-1] = last = torch.randn(m, device=device)
    tau, wide = torch.full((n,), 0.5, device=device), torch.ones(m, device=device)
    expected = torch_backend.softmax_partials_(last[None].clone(), tau[:1], mean_excess=True)
    found = fused.row_sums(scores, tau)
    for name in ("row_max", "sum_exp", "mean_excess"):
        _close(getattr(found, name)[-1:], getattr(expected, name))
    sums = _no_sums(wide)
    fused.column_sums_(scores, wide, sums)
    _close(sums.sum_exp, (n - 1) * (-last.clamp(min=0.0)).exp() + (last - last.clamp(min=0.0)).exp())
    fused.pair_logits_grad_(scores, tau, tau, tau, wide, wide, wide)
    _close(scores[-1], 0.5 * ((last - 0.5) / 0.5).exp() + (last - 1.0).exp())


# --- Whole kernels -------------------------------------------------------------------------------------------


def _leaves(dtype, device, *shapes):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).to(device, dtype).requires_grad_() for shape in shapes]


def _gradients(found, weights, leaves):
    value = sum((x * w.to(x)).sum() for x, w in zip(found, weights, strict=True))
    return torch.autograd.grad(value, leaves)


def _same(one, other):
    """Values as float32 has them, gradients as their inputs' dtype has them: a sum of terms, each rounded."""
    (values, statistics, gradients), (found, noted, own) = one, other
    torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(noted, statistics, rtol=1e-5, atol=1e-5)
    for gradient, expected in zip(own, gradients, strict=True):
        assert gradient.dtype == expected.dtype
        roundings = 32 if expected.dtype == torch.float32 else 4
        slack = roundings * torch.finfo(expected.dtype).eps * expected.abs().max()
        assert (gradient - expected).abs().max() <= slack


@pytest.mark.parametrize("target_in_support", [True, False])
@pytest.mark.parametrize("transform", [None, SoftCap(2.0)], ids=["linear", "softcap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_match_eager(fused, device, dtype, transform, target_in_support, monkeypatch):
    monkeypatch.setattr(chunked, "block_rows", lambda *_, **__: 2)
    queries, keys, bias = _leaves(dtype, device, (5, 8), (33, 8), (33,))
    tau = torch.linspace(0.3, 2.0, 5, device=device).requires_grad_()
    target, weight = torch.arange(5, device=device), torch.linspace(-1.0, 1.0, 5, device=device)
    products = product_rows(queries, keys, target, bias, transform, target_in_support)
    leaves, results = [queries, keys, bias, tau], []
    for way, options in ((reference, {}), (autograd, {"backend": fused})):
        found = way.log_mean_exp_rows(products, tau, statistics=STATISTICS, **options)
        results.append(((found.log_g,), found.statistics, _gradients((found.log_g,), (weight,), leaves)))
    _same(*results)


@pytest.mark.parametrize("cached", [0, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_pairs_match_eager(fused, device, dtype, cached, monkeypatch):
    monkeypatch.setattr(local, "block_rows", lambda *_, **__: 3)
    if fused.fused_pairs is not None:  # stripes; test_pair_tiles.py has the tiles
        monkeypatch.setattr(fused.fused_pairs, "takes", lambda *_: False)
    queries, keys = _leaves(dtype, device, (8, 6), (8, 6))
    taus = [torch.linspace(a, b, 8, device=device).requires_grad_() for a, b in ((0.3, 2.0), (1.0, 0.2))]
    weights = [torch.linspace(a, b, 8, device=device) for a, b in ((-1.0, 1.0), (2.0, 1.0))]
    leaves, results = [queries, keys, *taus], []
    for way, options in ((reference, {}), (local, {"backend": fused})):
        with byte_budget(cached):
            found = way.pair_log_sums(queries, keys, *taus, **options)
            sums = (found.rows, found.columns)
            results.append((*sums, _gradients(sums, weights, leaves)))
    _same(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [5, 4097])
@pytest.mark.parametrize("banned", [-math.inf, torch.finfo(torch.float32).min, -1e4], ids=str)
@pytest.mark.parametrize("where", ["first", "last", "scattered"])
def test_outcomes_that_cannot_happen_are_left_out(fused, device, dtype, m, banned, where):
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(3, m, generator=g, dtype=dtype).to(device)
    half = m // 2
    out = {
        "first": torch.arange(half),
        "last": torch.arange(m - half, m),
        "scattered": torch.arange(1, m, 2),
    }[where].to(device)
    kept = torch.ones(m, dtype=torch.bool, device=device)
    kept[out] = False
    rest = scores[:, kept]
    scores[:, out] = banned
    found, wanted = fused.profile(scores), torch_backend.profile(rest.double())
    assert found.possible.tolist() == [rest.shape[1]] * 3
    for name in ("row_max", "sum_exp", "mean_excess", "mean", "std"):
        torch.testing.assert_close(
            getattr(found, name), getattr(wanted, name).to(dtype), rtol=2e-5, atol=1e-6, msg=name
        )
    whole = torch.zeros(3, dtype=torch.long, device=device) + int(kept.nonzero()[0])
    for with_target in (True, False):
        inside = rest if with_target else rest[:, 1:]
        found = fused.moments(scores, whole, with_target, MOMENTS)
        wanted = torch_backend.moments(inside.double(), whole * 0, True, MOMENTS)
        for name in MOMENTS:
            torch.testing.assert_close(found[name], wanted[name].to(dtype), rtol=2e-5, atol=1e-6, msg=name)
