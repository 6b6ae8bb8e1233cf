"""What a predictor may learn of scores, against slow formulas; projections folded into the keys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import scales, seeds

from dro_temp.interfaces import FoldedProjection
from dro_temp.interfaces.statistics import ScoreStatistics

float64 = torch.float64
SLOW = {
    "max": lambda s: s.max(),
    "norm": lambda s: s.square().sum().sqrt(),
    "mean": lambda s: s.mean(),
    "std": lambda s: (s - s.mean()).square().mean().sqrt(),
    "log_sum_exp": lambda s: (s - s.max()).exp().sum().log() + s.max(),
    "entropy": lambda s: torch.special.entr(s.softmax(0)).sum(),
}


@st.composite
def _scores(draw):
    g = torch.Generator().manual_seed(draw(seeds))
    n, m = draw(st.integers(1, 7)), draw(st.integers(2, 9))
    scores = draw(scales) * torch.randn(n, m, generator=g, dtype=float64)
    mask = torch.rand(n, m, generator=g) < 0.6
    mask[:, 0] = True
    return scores, mask if draw(st.booleans()) else None


def _row(scores, mask, i):
    return scores[i] if mask is None else scores[i][mask[i]]


@given(_scores())
@settings(max_examples=60)
def test_statistics_equal_their_formulas(case):
    scores, mask = case
    summary = ScoreStatistics(scores, mask)
    assert summary.outcomes == scores.shape[1]
    for name, slow in SLOW.items():
        expected = torch.stack([slow(_row(scores, mask, i)) for i in range(len(scores))])
        torch.testing.assert_close(getattr(summary, name), expected, rtol=1e-9, atol=1e-12, msg=name)
    centre = scores[:, 0]
    expected = torch.stack([(_row(scores, mask, i) - centre[i]).norm() for i in range(len(scores))])
    torch.testing.assert_close(summary.norm_about(centre), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_groups_of_rows_change_nothing(masked):
    """Rows so wide that they are taken three at a time."""
    g = torch.Generator().manual_seed(0)
    for m in [2**20 // 3]:
        scores = torch.randn(4, m, generator=g)
        mask = torch.rand(4, m, generator=g) < 0.5 if masked else None
        whole = [
            ScoreStatistics(scores[i : i + 1], None if mask is None else mask[i : i + 1]) for i in range(4)
        ]
        for name in SLOW:
            expected = torch.cat([getattr(one, name) for one in whole])
            torch.testing.assert_close(getattr(ScoreStatistics(scores, mask), name), expected, msg=name)


def test_nothing_it_says_carries_gradient_but_projections_to_their_weight():
    scores = torch.randn(3, 5, requires_grad=True)
    weight = torch.randn(2, 5, requires_grad=True)
    summary = ScoreStatistics(scores)
    assert not any(getattr(summary, name).requires_grad for name in SLOW)
    summary.project(weight, summary.max).sum().backward()
    assert scores.grad is None
    expected = (scores.detach() - scores.detach().amax(1, keepdim=True)).sum(0)
    torch.testing.assert_close(weight.grad, expected.expand(2, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(dtype):
    scores = torch.randn(3, 50).to(dtype)
    for name in SLOW:
        found = getattr(ScoreStatistics(scores), name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, getattr(ScoreStatistics(scores.float()), name))


@given(seeds, st.integers(0, 5), st.integers(1, 9), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_a_fold_is_the_projection_of_the_scores(seed, n, m, bias, shifted):
    g = torch.Generator().manual_seed(seed)
    queries, keys, weight = (
        torch.randn(k, w, generator=g, dtype=float64) for k, w in ((n, 3), (m, 3), (2, m))
    )
    head = torch.randn(m, generator=g, dtype=float64) if bias else None
    shift = torch.randn(n, generator=g, dtype=float64) if shifted else None
    back = torch.randn(n, 2, generator=g, dtype=float64)
    weight.requires_grad_()
    scores = queries @ keys.T + (0.0 if head is None else head) - (0.0 if shift is None else shift[:, None])
    expected = scores @ weight.T
    fold = FoldedProjection(keys, head)
    found = fold(queries, weight, shift)
    torch.testing.assert_close(found, expected)
    ((made_of, leaf),) = fold.folded()
    assert made_of is weight
    gradient = fold.weight_gradient(torch.autograd.grad(found, leaf, back)[0])
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight, back)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fold_is_made_once_and_again_when_its_weight_has_moved(dtype):
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(4, 3, generator=g), torch.randn(9000, 3, generator=g).to(dtype)
    weight = torch.randn(2, 9000, generator=g)
    fold = FoldedProjection(keys, None)

    def assert_right():
        torch.testing.assert_close(
            fold(queries, weight), (queries @ keys.float().T) @ weight.T, rtol=1e-4, atol=1e-2
        )

    assert_right()
    before = fold.folded()[0][1]
    assert_right()
    assert fold.folded()[0][1] is before
    weight.mul_(2.0)
    assert_right()
    assert fold.folded()[0][1] is not before
