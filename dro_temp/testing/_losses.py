"""What every loss on rows must do."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dro_temp.interfaces import LinearScores, Rows
from dro_temp.kernels.dispatch import BackendOption
from dro_temp.losses import LogMeanExpLoss
from dro_temp.state import staged_modules
from dro_temp.testing._asserts import assert_same, assert_unchanged, few_examples, state_of
from dro_temp.testing._cases import LossCase

_KINDS = (False, True)  # classes, pairs

# --- Values --------------------------------------------------------------------------------------------------


def gives_one_value_per_row(case: LossCase) -> None:
    """Shape [n], float32 or better, also from low precision; one row, and two."""
    for n in (1, 2, 5):
        for pairs in _KINDS:
            values = case.build()(case.rows(n, pairs=pairs), case.tau(n))
            assert values.shape == (n,), f"expected values of shape [{n}], received {list(values.shape)}"
            assert values.dtype == torch.float64, (
                f"expected float64 values of float64 rows, received {values.dtype}"
            )
    half = case.rows(4)
    low = Rows(half.dense_scores.bfloat16(), half.target, index=half.index)
    assert case.build()(low, case.tau(4).bfloat16()).dtype == torch.float32


def works_row_by_row(case: LossCase) -> None:
    """A row's value, and its gradient, do not depend on the other rows of the batch."""
    for pairs in _KINDS:
        rows, tau = case.rows(5, pairs=pairs), case.tau(5)
        scores = rows.dense_scores.clone().requires_grad_()
        values = case.build()(case.rows(5, pairs=pairs, scores=scores), tau)
        for i in range(5):
            one = slice(i, i + 1)
            alone = case.build()(rows.select(one), tau[one])
            what = f"value of row {i} of 5, and by itself (pairs={pairs})"
            assert_same(values[one].detach(), alone, what, rtol=1e-9, atol=1e-12)
        (gradient,) = torch.autograd.grad(values[1], scores)
        gradient[1] = 0.0
        assert not gradient.any(), (
            "expected the value of row 1 to have no gradient to the scores of other rows"
        )


def streams_what_it_computes(case: LossCase) -> None:
    """Where scores are products, values and gradients are those of the score matrix, which is not made."""

    def run(backend: BackendOption, pairs: bool) -> tuple[Tensor, ...]:
        loss, generator = case.build(), torch.Generator().manual_seed(0)
        assert isinstance(loss, LogMeanExpLoss)
        loss.backend = backend
        queries, keys = (
            torch.randn(k, 4, generator=generator, dtype=torch.float64).requires_grad_()
            for k in (5, case.outcomes)
        )
        tau = case.tau(5).requires_grad_()
        values = loss(case.rows(5, pairs=pairs, scores=LinearScores(queries, keys)), tau)
        values.mean().backward()
        return values.detach(), *(x.grad for x in (queries, keys, tau))

    if not isinstance(case.build(), LogMeanExpLoss):
        return
    made = AssertionError(
        "expected a streaming loss to read log_g and tau alone, it made the scores of its rows"
    )
    for pairs in _KINDS:
        expected = run("reference", pairs)
        with mock.patch.object(LinearScores, "dense", side_effect=made):
            streamed = run("torch", pairs)
        for name, ours, theirs in zip(("value", "queries", "keys", "tau"), streamed, expected, strict=True):
            assert_same(
                ours, theirs, f"{name} streamed, and from the matrix (pairs={pairs})", rtol=1e-8, atol=1e-10
            )


def knows_whether_the_target_is_an_outcome(case: LossCase) -> None:
    """The target of a class is an outcome, that of a pair is none; or, where the case says so, it always counts.

    As an outcome, a target has margin zero. So a pair with a copy of its target among the columns has the outcomes of a
    class.
    """
    classes, tau = case.rows(5), case.tau(5)
    scores = classes.dense_scores
    if case.excludes_target:
        scores = torch.cat([scores, scores.gather(1, classes.target[:, None])], 1)
    pairs = case.rows(5, pairs=True, scores=scores)
    beside = "with a copy of the target beside them" if case.excludes_target else "of the same scores"
    what = f"excludes_target={case.excludes_target}: values of pairs {beside}, and of classes"
    assert_same(case.build()(pairs, tau), case.build()(classes, tau), what, rtol=1e-9, atol=1e-9)


def takes_the_worst_case(case: LossCase) -> None:
    """A robust value is above the mean margin, and outcomes weigh more the higher they score."""
    if not case.robust:
        return

    @few_examples
    @given(st.integers(0, 999), st.booleans())
    def check(seed: int, pairs: bool) -> None:
        rows, tau = case.rows(5, seed=seed, pairs=pairs), case.tau(5, seed=seed)
        scores = rows.dense_scores.clone().requires_grad_()
        values = case.build()(case.rows(5, seed=seed, pairs=pairs, scores=scores), tau)
        mean = (rows.margins.sum(1) / rows.support_size) * tau ** (case.degree - 1)
        assert bool((values > mean).all()), (
            f"robust=True: expected values above the mean margins {mean}, received {values.detach()}"
        )
        (weights,) = torch.autograd.grad(values.sum(), scores)
        # Every column but the target's, from the lowest score to the highest.
        order = rows.dense_scores.scatter(1, rows.target[:, None], -torch.inf).argsort(1)[:, 1:]
        ordered = weights.gather(1, order)
        rises = (ordered.diff() >= -1e-12).all() and (ordered[:, -1] > ordered[:, 0]).all()
        assert bool(rises & (ordered >= -1e-12).all()), (
            "robust=True: expected outcomes to weigh more the higher they score, received, from the lowest score to "
            f"the highest, {ordered}"
        )

    check()


def ignores_a_constant_in_scores(case: LossCase) -> None:
    """F(s + c) = F(s): only margins matter; or, where the case says so, they are not all that does."""
    if not case.margins_only:
        rows, tau = case.rows(5), case.tau(5)
        moved = case.rows(5, scores=rows.dense_scores + 1.0)
        same = torch.allclose(case.build()(moved, tau), case.build()(rows, tau))
        assert not same, "margins_only=False: expected other values of scores + 1, received the same"
        return

    @few_examples
    @given(st.integers(0, 999), st.floats(-100, 100), st.booleans())
    def check(seed: int, shift: float, pairs: bool) -> None:
        rows = case.rows(5, seed=seed, pairs=pairs)
        moved = case.rows(5, seed=seed, pairs=pairs, scores=rows.dense_scores + shift)
        tau = case.tau(5, seed=seed)
        what = f"values of scores + {shift}, and of the scores"
        assert_same(case.build()(moved, tau), case.build()(rows, tau), what, rtol=1e-9, atol=1e-9)

    check()


def scales_as_declared(case: LossCase) -> None:
    """F(c h, c tau) = c^k F(h, tau), k the case's degree."""

    @few_examples
    @given(st.integers(0, 999), st.floats(0.01, 100), st.booleans())
    def check(seed: int, c: float, pairs: bool) -> None:
        rows = case.rows(5, seed=seed, pairs=pairs)
        scaled = case.rows(5, seed=seed, pairs=pairs, scores=c * rows.dense_scores)
        tau = case.tau(5, seed=seed)
        expected = c**case.degree * case.build()(rows, tau)
        what = f"degree={case.degree}: values of {c} times scores and tau, and {c}^{case.degree} times the values"
        assert_same(case.build()(scaled, c * tau), expected, what, rtol=1e-9, atol=1e-9)

    check()


def follows_a_permutation(case: LossCase) -> None:
    """The order of rows, and of outcomes, does not matter."""

    @few_examples
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
        what = "values of rows and outcomes in another order"
        assert_same(case.build()(shuffled, tau[order]), values[order], what, rtol=1e-9, atol=1e-12)

    check()


def follows_a_target_distribution(case: LossCase) -> None:
    """All probability on the target is a label; some of it on others is another value, or a ValueError."""
    rows, tau = case.rows(5), case.tau(5)
    values = case.build()(rows, tau)
    certain = nn.functional.one_hot(rows.target, case.outcomes).double()
    try:
        hard = case.build()(case.rows(5, target_distribution=certain), tau)
        smoothed = case.build()(case.rows(5, target_distribution=0.7 * certain + 0.3 / case.outcomes), tau)
    except ValueError:
        return
    assert_same(
        hard, values, "values of all probability on the target, and of the target", rtol=1e-9, atol=1e-9
    )
    different = ~torch.isclose(smoothed, values)
    assert bool(different.all()), (
        "expected the target distribution to count, received the values of the targets"
    )


# --- Rows that do not count, extreme numbers, gradients ------------------------------------------------------


def leaves_masked_rows_inert(case: LossCase) -> None:
    """A row of weight zero has value and gradient zero, whatever it holds; other weights are left to the reduction."""
    clean, tau, keep = case.rows(4), case.tau(4), torch.tensor([0, 1, 3])
    reference = case.build()(clean, tau)
    for junk in (float("nan"), float("inf"), 1e30):
        scores = clean.dense_scores.clone()
        scores[2] = junk
        scores.requires_grad_()
        temperatures = tau.clone().requires_grad_()
        weight = torch.tensor([1.0, 2.0, 0.0, 1.0])
        values = case.build()(case.rows(4, scores=scores, weight=weight), temperatures)
        values.sum().backward()
        what = f"values of rows of weight 1, 2 and 1 beside one of weight 0 that holds {junk}"
        assert_same(values[keep].detach(), reference[keep], what, rtol=1e-7, atol=1e-7)
        assert scores.grad is not None
        assert temperatures.grad is not None
        inert = values[2] == 0 and temperatures.grad[2] == 0 and not scores.grad[2].any()
        assert inert, f"expected value and gradient 0 of a row of weight 0 that holds {junk}"
        assert bool(scores.grad.isfinite().all())
    all_masked = case.build()(case.rows(4, weight=torch.zeros(4)), tau)
    assert bool((all_masked == 0).all())


def survives_extreme_scores(case: LossCase) -> None:
    """Scores of +-1e4 at temperatures down to 0.005 give finite values and gradients in float32."""

    @few_examples
    @given(st.integers(0, 999), st.sampled_from([0.005, 0.05, 1.0, 5.0]), st.booleans())
    def check(seed: int, tau: float, pairs: bool) -> None:
        signs = case.rows(4, seed=seed).dense_scores.sign().float()
        scores = (1e4 * signs).requires_grad_()
        temperatures = torch.full((4,), tau, requires_grad=True)
        values = case.build()(case.rows(4, seed=seed, pairs=pairs, scores=scores), temperatures)
        values.sum().backward()
        assert scores.grad is not None
        assert temperatures.grad is not None
        for name, x in (
            ("values", values),
            ("scores' gradient", scores.grad),
            ("tau's gradient", temperatures.grad),
        ):
            assert bool(x.isfinite().all()), f"expected finite {name}, received {x}"

    check()


def has_the_right_gradient_at_first_sight(case: LossCase) -> None:
    """On rows never seen before, the gradient is that of the value: checked by finite differences in float64."""
    for pairs in _KINDS:
        scores = case.rows(2, pairs=pairs).dense_scores.clone().requires_grad_()
        tau = case.tau(2).requires_grad_()

        def value(scores: Tensor, tau: Tensor, pairs: bool = pairs) -> Tensor:
            values: Tensor = case.build()(case.rows(2, pairs=pairs, scores=scores), tau)
            return values

        assert torch.autograd.gradcheck(value, (scores, tau), rtol=1e-6, atol=1e-7)


# --- State ---------------------------------------------------------------------------------------------------


def forward_writes_nothing(case: LossCase) -> None:
    """Forward, repeated, with and without gradients, in training and eval: the state stays as it was."""
    loss = case.build()
    rows, tau = case.rows(4), case.tau(4)
    before = state_of(loss)
    assert_same(loss(rows, tau), loss(rows, tau), "a second forward, and the first")
    with torch.no_grad():
        loss(rows, tau)
    loss.eval()(rows, tau)
    assert_unchanged(loss, before, "expected a forward to write nothing")


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
    assert_same(loaded(rows, tau), loss(rows, tau), "after load_state_dict")


CONTRACTS = (
    gives_one_value_per_row,
    works_row_by_row,
    streams_what_it_computes,
    knows_whether_the_target_is_an_outcome,
    takes_the_worst_case,
    ignores_a_constant_in_scores,
    scales_as_declared,
    follows_a_permutation,
    follows_a_target_distribution,
    leaves_masked_rows_inert,
    survives_extreme_scores,
    has_the_right_gradient_at_first_sight,
    forward_writes_nothing,
    survives_saving,
)
