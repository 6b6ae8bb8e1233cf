"""Products of bfloat16 factors in C: no digit of the factors is lost on the way to float32."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from streams import assert_no_worse_than_eager, blocks_of, row_problems, upstream_of

from dro_temp.kernels import GradOutput, log_mean_exp_rows
from dro_temp.kernels.backends import cpu
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.cpu import ops
from dro_temp.kernels.dispatch import cpu_runs_on

bfloat16 = torch.bfloat16
pytestmark = pytest.mark.skipif(
    not cpu_runs_on(torch.device("cpu"), torch.float32), reason="there is no C compiler"
)
# Around the sizes of tiles (8, 32, 48) and of packs (512 numbers).
heights = st.sampled_from([1, 2, 7, 8, 9, 31])
widths = st.sampled_from([1, 31, 33, 47, 48, 49, 100])
depths = st.sampled_from([1, 2, 3, 34, 512, 514, 1100])


def _drawn(seed, *shape, wide=False):
    """Numbers in bfloat16; in every other column of a wider matrix if `wide`, so that rows lie apart."""
    n, m = shape
    x = torch.randn(n, 2 * m, generator=torch.Generator().manual_seed(seed)).to(bfloat16)
    return x[:, :m] if wide else x[:, :m].contiguous()


def _close(found, exact, magnitude):
    """Off by some roundings of float32 sums, none of bfloat16."""
    assert ((found.double() - exact).abs() <= 16 * torch.finfo(torch.float32).eps * magnitude + 1e-37).all()


@given(heights, widths, depths, seeds, st.booleans(), st.sampled_from([1.0, -0.7]), st.integers(1, 3))
@settings(max_examples=80)
def test_scores(n, m, d, seed, wide, scale, count):
    queries, keys = _drawn(seed, n, d, wide=wide), _drawn(seed + 1, m, d, wide=wide)
    out = torch.full((n, m + 3), float("nan"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_THREAD_SHARE", 1)
        patch.setattr(torch, "get_num_threads", lambda: count)
        cpu.scorer(queries, keys)(queries, out[:, :m], scale)
    exact = scale * (queries.double() @ keys.double().T)
    _close(out[:, :m], exact, queries.double().abs() @ keys.double().abs().T)
    assert out[:, m:].isnan().all()  # nobody writes where he should not


@pytest.mark.skipif(
    ops._bfloat16_library() is None,
    reason="nobody adds up in bfloat16 where the processor does not multiply it",
)
@given(depths, widths, heights, seeds, st.booleans(), st.integers(1, 3))
@settings(max_examples=80)
def test_sums_of_rows(n, m, d, seed, wide, count):
    weights, x = _drawn(seed, n, m, wide=wide), _drawn(seed + 1, n, d).float()
    total = torch.full((m, d + 1), float("nan"))
    kept = total[:, :d]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_THREAD_SHARE", 1)
        patch.setattr(torch, "get_num_threads", lambda: count)
        cpu.accumulate_(kept, weights, x, bfloat16, first=True)
        cpu.accumulate_(kept, weights, x, bfloat16, first=False)
    exact, magnitude = (
        2.0 * (a.double().T @ b.double()) for a, b in ((weights, x), (weights.abs(), x.abs()))
    )
    _close(kept, exact, magnitude)
    assert total[:, d:].isnan().all()


@given(heights, widths, seeds)
@settings(max_examples=30)
def test_weights_are_rounded_and_their_sums_are_not(n, m, seed):
    g = torch.Generator().manual_seed(seed)
    scores, tau = 3.0 * torch.randn(n, m, generator=g), 0.1 + torch.rand(n, generator=g)
    expected = torch_backend.softmax_partials_(scores.clone(), tau, mean_excess=True)
    for way in (cpu, torch_backend):
        found = way.softmax_partials_(scores.clone(), tau, mean_excess=True, factor=bfloat16)
        assert found.weights.dtype == bfloat16
        torch.testing.assert_close(
            found.weights.float(), expected.weights, rtol=torch.finfo(bfloat16).eps / 2 + 1e-5, atol=1e-30
        )
        for name in ("row_max", "sum_exp", "mean_excess"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_nan_stays_nan():
    scores = torch.tensor([[0.0, float("nan")]])
    assert (
        cpu.softmax_partials_(scores, torch.ones(1), mean_excess=False, factor=bfloat16).weights.isnan().any()
    )
    queries = torch.tensor([[1.0, float("nan")]], dtype=bfloat16)
    keys = torch.ones(3, 2, dtype=bfloat16)
    assert cpu.scorer(queries, keys)(queries, torch.empty(1, 3)).isnan().all()


@given(row_problems(heights=(1, 7)), seeds, st.booleans(), st.booleans())
@settings(max_examples=60)
def test_rows_are_no_worse_than_eager(problem, seed, plain, speculates):
    """Without bias and transform the weights themselves are in bfloat16."""
    if plain:
        problem.bias = problem.transform = None
    problem, upstream = problem.to(bfloat16), upstream_of(problem, seed)
    expected = (
        GradOutput(lambda log_g, tau, rows: (torch.ones_like(log_g), 0.0 * log_g)) if speculates else None
    )
    with blocks_of(3):
        ours = problem.run(partial(log_mean_exp_rows, backend=cpu), upstream, expected=expected)
    assert_no_worse_than_eager(ours, problem, upstream)
