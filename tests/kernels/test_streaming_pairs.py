"""Log-sums of both sides of a block of pairs, from stripes, against the score matrix and ordinary autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import scales, seeds
from streams import blocks_of, float64

from dro_temp.kernels import PairLogSums, byte_budget, empty_cache, memory, pair_log_sums, paired_scores
from dro_temp.kernels.backends import reference
from dro_temp.kernels.pairs.exchanged import exchanged_log_sums

NAMES = ("rows", "columns", "dqueries", "dkeys", "dtau_rows", "dtau_columns")


def _pairs(seed, n, scale=1.0, low=0.5, d=3):
    g = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(n, d, generator=g, dtype=float64) for _ in range(2))
    taus = [low * (1 + torch.rand(n, generator=g, dtype=float64)) for _ in range(2)]
    return scale * queries, keys, *taus


def _upstream(seed, n):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=g, dtype=float64) for _ in range(2)]


def _run(sums_of, inputs, upstream):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    sums = sums_of(*leaves)
    u, w = (x.to(sums.rows.dtype) for x in upstream)
    (u @ sums.rows + w @ sums.columns).backward()
    return dict(
        zip(NAMES, [sums.rows.detach(), sums.columns.detach(), *(x.grad for x in leaves)], strict=True)
    )


def _magnitudes(inputs, low):
    q, k = (float(x.double().norm(dim=1).max()) for x in inputs[:2])
    n, size = len(inputs[0]), q * k
    slope = 4 * (1 + 2 * size / low**2)
    scale = {"rows": 1.0, "columns": 1.0, "dqueries": 8 * n * k / low, "dkeys": 8 * n * q / low}
    return 1 + size / low, scale | {"dtau_rows": slope, "dtau_columns": slope}


def _assert_close(ours, theirs, inputs, low):
    one, magnitudes = _magnitudes(inputs, low)
    slack = 64 * torch.finfo(float64).eps * one
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name],
            value,
            rtol=slack,
            atol=slack * magnitudes[name],
            msg=lambda text, name=name: f"{name}: {text}",
        )


@given(
    seeds,
    st.sampled_from([2, 3, 5, 9]),
    scales,
    st.sampled_from([0.005, 0.3, 50.0]),
    st.integers(1, 4),
    st.sampled_from([0, 2**30]),
)
@settings(max_examples=80)
def test_equals_eager(seed, n, scale, low, step, budget):
    inputs, upstream = _pairs(seed, n, scale, low), _upstream(seed + 1, n)
    theirs = _run(reference.pair_log_sums, inputs, upstream)
    with blocks_of(step), byte_budget(budget):
        ours = _run(pair_log_sums, inputs, upstream)
    _assert_close(ours, theirs, inputs, low)


@given(seeds, st.integers(1, 5), st.integers(1, 3), st.sampled_from([0, 2**30]))
@settings(max_examples=60)
def test_blocks_of_several_processes_add_up_to_the_square_one(seed, first, step, budget):
    """Two blocks of rows; each column is `logaddexp` of theirs."""
    _assert_adds_up(seed, first, step, budget)


@pytest.mark.parametrize("first", [0, 6])
def test_a_process_without_rows_adds_nothing(first):
    _assert_adds_up(0, first, step=2, budget=0)


def _assert_adds_up(seed, first, step, budget):
    n = 6
    inputs, upstream = _pairs(seed, n), _upstream(seed + 1, n)

    def in_two(queries, keys, tau_rows, tau_columns):
        own, parts = paired_scores(queries, keys), []
        for rows in (slice(0, first), slice(first, n)):
            parts.append(
                pair_log_sums(
                    queries[rows], keys, tau_rows[rows], tau_columns, offset=rows.start, own_columns=own
                )
            )
        columns = torch.logaddexp(parts[0].columns, parts[1].columns)
        return type(parts[0])(torch.cat([part.rows for part in parts]), columns)

    whole = _run(reference.pair_log_sums, inputs, upstream)
    with blocks_of(step), byte_budget(budget):
        ours = _run(in_two, inputs, upstream)
    _assert_close(ours, whole, inputs, 0.5)


@given(
    seeds,
    st.integers(0, 6),
    scales,
    st.sampled_from([0.005, 0.3]),
    st.integers(1, 3),
    st.sampled_from([0, 2**30]),
)
@settings(max_examples=60)
def test_shares_that_exchange_numbers_equal_the_square_one(seed, first, scale, low, step, budget):
    """Both sides of two processes; what they gather in backward is recorded once, and handed over at a second one."""
    n = 6
    inputs, upstream = _pairs(seed, n, scale, low), _upstream(seed + 1, n)
    whole = _run(reference.pair_log_sums, inputs, upstream)
    shares, recorded = (slice(0, first), slice(first, n)), {}

    def share(k, mine):
        def gather(rows):
            recorded.setdefault(k, rows)
            return torch.cat([recorded[i] for i in (0, 1)]) if len(recorded) == 2 else rows.new_ones(n, 6)

        leaves = [x[mine].detach().clone().requires_grad_() for x in inputs]
        sums = exchanged_log_sums(
            tuple(leaves[:2]), inputs[:2], tuple(leaves[2:]), offset=mine.start, gather=gather
        )
        total = sum(u[mine] @ x for u, x in zip(upstream, sums, strict=True))
        return sums, lambda: torch.autograd.grad(total, leaves, retain_graph=True)

    with blocks_of(step), byte_budget(budget):
        sums, gradients = zip(*(share(*numbered) for numbered in enumerate(shares)), strict=True)
        parts = [[of_share() for of_share in gradients] for _ in range(2)][1]
    found = [torch.cat(x).detach() for x in zip(*sums, strict=True)]
    ours = dict(zip(NAMES, found + [torch.cat(x) for x in zip(*parts, strict=True)], strict=True))
    _assert_close(ours, whole, inputs, low)


@pytest.mark.parametrize("budget", [0, 2**30])
def test_one_share_is_everything(budget):
    inputs, upstream = _pairs(0, 7), _upstream(1, 7)

    def alone(queries, keys, *taus):
        everyone = queries.detach(), keys.detach()
        sums = exchanged_log_sums((queries, keys), everyone, taus, offset=0, gather=lambda rows: rows)
        return PairLogSums(*sums)

    with blocks_of(3), byte_budget(budget):
        ours = _run(alone, inputs, upstream)
    _assert_close(ours, _run(reference.pair_log_sums, inputs, upstream), inputs, 0.5)


@given(seeds, st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=30)
def test_a_rectangular_block_equals_eager(seed, rows, offset):
    queries, keys, tau_rows, tau_columns = _pairs(seed, 9)
    inputs = (queries[offset : offset + rows], keys, tau_rows[:rows], tau_columns)
    upstream = [_upstream(seed, rows)[0], _upstream(seed, 9)[1]]
    if rows == 1:  # nobody else is in its own column; the sum of nothing has no gradient
        upstream[1][offset] = 0.0
    options = {"offset": offset, "own_columns": (queries * keys).sum(1)}
    theirs = _run(lambda *x: reference.pair_log_sums(*x, **options), inputs, upstream)
    with blocks_of(2):
        ours = _run(lambda *x: pair_log_sums(*x, **options), inputs, upstream)
    if rows == 1:
        assert ours["columns"][offset] < -1e29
        ours["columns"][offset] = theirs["columns"][offset]
    _assert_close(ours, theirs, inputs, 0.5)


@pytest.mark.parametrize("budget", [0, 2**30])
def test_gradcheck(budget):
    inputs = [x.requires_grad_() for x in _pairs(0, 5, d=2)]

    def both(*x):
        sums = pair_log_sums(*x)
        return sums.rows, sums.columns

    with blocks_of(2), byte_budget(budget):
        assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_the_size_of_stripes_changes_nothing(step):
    inputs, upstream = _pairs(0, 7, low=0.02), _upstream(1, 7)
    with blocks_of(100):
        whole = _run(pair_log_sums, inputs, upstream)
    with blocks_of(step):
        _assert_close(_run(pair_log_sums, inputs, upstream), whole, inputs, 0.02)


@given(
    seeds,
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([0.1, 1.0, 30.0]),
    st.sampled_from([0.005, 0.3, 50.0]),
    st.sampled_from([0, 2**30]),
)
@settings(max_examples=50)
def test_low_precision_is_no_worse_than_eager(seed, dtype, scale, low, budget):
    """Against float64 on the same numbers."""
    *features, tau_rows, tau_columns = _pairs(seed, 7, scale, low)
    inputs, upstream = (*(x.to(dtype) for x in features), tau_rows, tau_columns), _upstream(seed + 1, 7)
    truth = _run(reference.pair_log_sums, [x.double() for x in inputs], upstream)
    theirs = _run(reference.pair_log_sums, inputs, upstream)
    with blocks_of(3), byte_budget(budget):
        ours = _run(pair_log_sums, inputs, upstream)
    one, magnitudes = _magnitudes(inputs, low)
    for name, value in truth.items():
        error, allowed = ((x[name].double() - value).abs().max() for x in (ours, theirs))
        # Eager's error, one rounding of the result, and some roundings of float32 scores over tau.
        allowed += torch.finfo(ours[name].dtype).eps * value.abs().max()
        allowed += 16 * torch.finfo(torch.float32).eps * one * magnitudes[name]
        assert error <= allowed, f"{name}: off by {error:.3g}, eager may be off by {allowed:.3g}"


@pytest.mark.parametrize("budget", [0, 2**30])
def test_backward_twice_is_exact_both_times(budget):
    inputs = [x.requires_grad_() for x in _pairs(0, 6)]
    with blocks_of(2), byte_budget(budget):
        sums = pair_log_sums(*inputs)
        loss = (sums.rows.square() + 0.3 * sums.columns).sum()
        first, second = (torch.autograd.grad(loss, inputs, retain_graph=True) for _ in range(2))
    theirs = reference.pair_log_sums(*inputs)
    expected = torch.autograd.grad((theirs.rows.square() + 0.3 * theirs.columns).sum(), inputs)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)


@pytest.mark.parametrize("trained", [(), (0,), (1,), (2,), (3,), (0, 3)])
def test_only_some_inputs_are_trained(trained):
    inputs = _pairs(0, 6)
    for k in trained:
        inputs[k].requires_grad_()
    leaves, found = [inputs[k] for k in trained], []
    with blocks_of(2):
        for kernel in (pair_log_sums, reference.pair_log_sums):
            sums = kernel(*inputs)
            grads = torch.autograd.grad((sums.rows + sums.columns).sum(), leaves) if trained else ()
            found.append((sums.rows, sums.columns, grads))
    torch.testing.assert_close(*found)


def test_a_block_that_is_not_square_needs_the_columns_own_scores():
    queries, keys, tau, tau_columns = _pairs(0, 5)
    with pytest.raises(ValueError, match=r"expected as many rows as columns.*received 3 rows and 5.*Pass"):
        pair_log_sums(queries[:3], keys, tau[:3], tau_columns)


def test_nothing_is_stored_where_no_gradient_is_recorded():
    queries, keys = (torch.randn(64, 4, requires_grad=True) for _ in range(2))
    tau = torch.ones(64)
    empty_cache()
    with torch.no_grad():
        pair_log_sums(queries, keys, tau, tau)
    assert "pair scores" not in {purpose for purpose, _ in memory._free.pieces}
    pair_log_sums(queries, keys, tau, tau).rows.sum().backward()
    assert "pair scores" in {purpose for purpose, _ in memory._free.pieces}
