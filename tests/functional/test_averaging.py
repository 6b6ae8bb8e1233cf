"""Moving averages in the log domain, and duplicates."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from dro_temp import functional as F


@given(seeds, st.floats(0.01, 1.0))
def test_log_average_is_the_average(seed, gamma):
    g = torch.Generator().manual_seed(seed)
    u, new = torch.rand(2, 5, generator=g, dtype=torch.float64) + 0.1
    expected = ((1 - gamma) * u + gamma * new).log()
    torch.testing.assert_close(F.log_average(u.log(), new.log(), gamma), expected)


def test_log_average_far_outside_the_range_of_exp():
    log_u, log_g = torch.tensor([-1e4, 1e4, 0.0]), torch.tensor([1e4, -1e4, 1e4])
    expected = torch.tensor([1e4 + math.log(0.3), 1e4 + math.log(0.7), 1e4 + math.log(0.3)])
    torch.testing.assert_close(F.log_average(log_u, log_g, 0.3), expected)


def test_the_first_visit_is_taken_whole():
    unseen = torch.full((2,), -math.inf)
    assert torch.equal(F.log_average(unseen, torch.tensor([3.0, -3.0]), 0.1), torch.tensor([3.0, -3.0]))


@given(seeds, st.integers(1, 12))
def test_duplicates_against_a_loop(seed, n):
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(4, (n,), generator=g)
    x = 50 * torch.randn(n, generator=g, dtype=torch.float64)
    for ours, reduce in (
        (F.mean_duplicates(index, x), lambda same: same.mean()),
        (F.combine_duplicates(index, x), lambda same: same.logsumexp(0) - math.log(len(same))),
    ):
        for k in range(n):
            torch.testing.assert_close(ours[k], reduce(x[index == index[k]]))


@given(seeds)
def test_duplicates_do_not_depend_on_order_to_the_last_bit(seed):
    g = torch.Generator().manual_seed(seed)
    index, x = torch.randint(3, (9,), generator=g), torch.randn(9, generator=g)
    order = torch.randperm(9, generator=g)
    for combine in (F.mean_duplicates, F.combine_duplicates):
        assert torch.equal(combine(index, x)[order], combine(index[order], x[order]))


def test_empty_and_never_seen():
    empty = torch.empty(0, dtype=torch.long)
    assert F.combine_duplicates(empty, torch.empty(0)).shape == (0,)
    infinite = torch.full((2,), -math.inf)
    assert torch.equal(F.combine_duplicates(torch.tensor([1, 1]), infinite), infinite)


@given(st.floats(-50, 50), st.floats(0.001, 10), st.floats(0.001, 10))
def test_bounded_values_stay_inside_and_invert(raw, lower, width):
    upper = lower + width
    x = torch.tensor([raw], dtype=torch.float64)
    for bound in (F.sigmoid_between, F.clip_between):
        value = bound(x, lower, upper).item()
        assert lower <= value <= upper
    middle = lower + 0.3 * width
    assert F.sigmoid_between(
        torch.tensor(F.logit_between(middle, lower, upper), dtype=torch.float64), lower, upper
    ).item() == pytest.approx(middle)


def test_clip_lets_a_parameter_come_back():
    """torch.clamp would keep it outside for ever."""
    x = torch.tensor([2.0, 2.0, -1.0, -1.0, 0.5], requires_grad=True)
    inward_and_outward = torch.tensor([1.0, -1.0, -1.0, 1.0, 7.0])  # the gradients that arrive
    F.clip_between(x, 0.0, 1.0).backward(inward_and_outward)
    assert x.grad.tolist() == [1.0, 0.0, -1.0, 0.0, 7.0]
