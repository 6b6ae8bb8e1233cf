"""What every loss on rows must do."""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dro_temp.interfaces import Rows
from dro_temp.state import staged_modules
from dro_temp.testing._cases import LossCase

_some = settings(max_examples=20, deadline=None)
_KINDS = (False, True)  # classes, pairs


def gives_one_value_per_row(case: LossCase) -> None:
    """Shape [n], float32 or better, also from low precision; one row, and two."""
    for n in (1, 2, 5):
        for pairs in _KINDS:
            values = case.build()(case.rows(n, pairs=pairs), case.tau(n))
            assert values.shape == (n,)
            assert values.dtype == torch.float64
    half = case.rows(4)
    low = Rows(half.dense_scores.bfloat16(), half.target, index=half.index)
    assert case.build()(low, case.tau(4).bfloat16()).dtype == torch.float32


def ignores_a_constant_in_scores(case: LossCase) -> None:
    """F(s + c) = F(s): only margins matter; or, where the case says so, they are not all that does."""
    if not case.margins_only:
        rows, tau = case.rows(5), case.tau(5)
        moved = case.rows(5, scores=rows.dense_scores + 1.0)
        assert not torch.allclose(case.build()(moved, tau), case.build()(rows, tau))
        return

    @_some
    @given(st.integers(0, 999), st.floats(-100, 100), st.booleans())
    def check(seed: int, shift: float, pairs: bool) -> None:
        rows = case.rows(5, seed=seed, pairs=pairs)
        moved = case.rows(5, seed=seed, pairs=pairs, scores=rows.dense_scores + shift)
        tau = case.tau(5, seed=seed)
        torch.testing.assert_close(case.build()(moved, tau), case.build()(rows, tau), rtol=1e-9, atol=1e-9)

    check()


def scales_as_declared(case: LossCase) -> None:
    """F(c h, c tau) = c^k F(h, tau), k the case's degree."""

    @_some
    @given(st.integers(0, 999), st.floats(0.01, 100), st.booleans())
    def check(seed: int, c: float, pairs: bool) -> None:
        rows = case.rows(5, seed=seed, pairs=pairs)
        scaled = case.rows(5, seed=seed, pairs=pairs, scores=c * rows.dense_scores)
        tau = case.tau(5, seed=seed)
        expected = c**case.degree * case.build()(rows, tau)
        torch.testing.assert_close(case.build()(scaled, c * tau), expected, rtol=1e-9, atol=1e-9)

    check()


def follows_a_permutation(case: LossCase) -> None:
    """The order of rows, and of outcomes, does not matter."""

    @_some
    @given(st.integers(0, 999), st.booleans())
    def check(seed: int, pairs: bool) -> None:
        rows, tau = case.rows(6, seed=seed, pairs=pairs), case.tau(6, seed=seed)
        assert rows.index is not None
        values = case.build()(rows, tau)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        columns = torch.randperm(case.outcomes, generator=torch.Generator().manual_seed(seed + 1))
        shuffled = Rows(
            rows.dense_scores[order][:, columns],
            columns.argsort()[rows.target][order],
            index=rows.index[order],
            target_in_support=not pairs,
        )
        torch.testing.assert_close(case.build()(shuffled, tau[order]), values[order], rtol=1e-9, atol=1e-12)

    check()


def leaves_masked_rows_inert(case: LossCase) -> None:
    """A row of weight zero has value and gradient zero, whatever it holds, and changes no other row."""
    clean, tau = case.rows(4), case.tau(4)
    for junk in (float("nan"), float("inf"), 1e30):
        scores = clean.dense_scores.clone()
        scores[2] = junk
        scores.requires_grad_()
        temperatures = tau.clone().requires_grad_()
        weight = torch.tensor([1.0, 1.0, 0.0, 1.0])
        loss = case.build()
        values = loss(case.rows(4, scores=scores, weight=weight), temperatures)
        values.sum().backward()
        reference = case.build()(clean, tau)
        keep = torch.tensor([0, 1, 3])
        torch.testing.assert_close(values[keep].detach(), reference[keep])
        assert scores.grad is not None
        assert temperatures.grad is not None
        assert values[2] == 0
        assert bool((scores.grad[2] == 0).all())
        assert temperatures.grad[2] == 0
        assert bool(scores.grad.isfinite().all())
    all_masked = case.build()(case.rows(4, weight=torch.zeros(4)), tau)
    assert bool((all_masked == 0).all())


def survives_extreme_scores(case: LossCase) -> None:
    """Scores of +-1e4 at temperatures down to 0.005 give finite values and gradients in float32."""

    @_some
    @given(st.integers(0, 999), st.sampled_from([0.005, 0.05, 1.0, 5.0]), st.booleans())
    def check(seed: int, tau: float, pairs: bool) -> None:
        signs = case.rows(4, seed=seed).dense_scores.sign().float()
        scores = (1e4 * signs).requires_grad_()
        temperatures = torch.full((4,), tau, requires_grad=True)
        case.build()(case.rows(4, seed=seed, pairs=pairs, scores=scores), temperatures).sum().backward()
        assert scores.grad is not None
        assert temperatures.grad is not None
        assert bool(scores.grad.isfinite().all())
        assert bool(temperatures.grad.isfinite().all())

    check()


def has_the_right_gradient_at_first_sight(case: LossCase) -> None:
    """On rows never seen before, the gradient is that of the value: checked by finite differences in float64."""
    for pairs in _KINDS:
        rows, tau = case.rows(3, pairs=pairs), case.tau(3)

        def value(scores: Tensor, tau: Tensor, pairs: bool = pairs) -> Tensor:
            values: Tensor = case.build()(case.rows(3, pairs=pairs, scores=scores), tau)
            return values

        scores = rows.dense_scores.clone().requires_grad_()
        temperatures = tau.clone().requires_grad_()
        grads = torch.autograd.grad(value(scores, temperatures).sum(), (scores, temperatures))
        step = 1e-6
        for x, grad in zip((scores, temperatures), grads, strict=True):
            flat = x.detach().reshape(-1)
            for k in range(flat.numel()):
                shifted = []
                for sign in (1, -1):
                    moved = flat.clone()
                    moved[k] += sign * step
                    inputs = (
                        (moved.view_as(x), temperatures.detach()) if x is scores else (scores.detach(), moved)
                    )
                    shifted.append(value(*inputs).sum())
                slope = (shifted[0] - shifted[1]) / (2 * step)
                torch.testing.assert_close(grad.reshape(-1)[k], slope, rtol=1e-6, atol=1e-7)


def forward_writes_nothing(case: LossCase) -> None:
    """Forward, repeated, with and without gradients, in training and eval: the state stays as it was."""
    loss = case.build()
    rows, tau = case.rows(4), case.tau(4)
    before = copy.deepcopy(loss.state_dict())
    first = loss(rows, tau)
    second = loss(rows, tau)
    with torch.no_grad():
        loss(rows, tau)
    loss.eval()(rows, tau)
    assert torch.equal(first, second)
    for name, value in loss.state_dict().items():
        assert torch.equal(value, before[name]), name


def survives_saving(case: LossCase) -> None:
    """After some committed steps, a reloaded loss gives the same values bit for bit."""
    loss = case.build()
    for seed in range(3):
        loss(case.rows(6, seed=seed), case.tau(6).requires_grad_())
        for staged in staged_modules(loss.modules()):
            staged.commit()
    loaded = case.build()
    loaded.load_state_dict(loss.state_dict())
    rows, tau = case.rows(6, seed=9), case.tau(6)
    assert torch.equal(loaded(rows, tau), loss(rows, tau))


CONTRACTS = (
    gives_one_value_per_row,
    ignores_a_constant_in_scores,
    scales_as_declared,
    follows_a_permutation,
    leaves_masked_rows_inert,
    survives_extreme_scores,
    has_the_right_gradient_at_first_sight,
    forward_writes_nothing,
    survives_saving,
)
