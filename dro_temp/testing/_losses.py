"""What every loss on rows, every penalty over the views of a batch and every transform of scores must do."""

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dro_temp import functional as F
from dro_temp.functional import ScoreTransform
from dro_temp.interfaces import LinearScores
from dro_temp.kernels.dispatch import BackendOption
from dro_temp.losses import InfoNCELoss
from dro_temp.losses.log_mean_exp import StreamingLoss
from dro_temp.state import staged_modules
from dro_temp.testing._asserts import assert_same, assert_writes_nothing, few_examples
from dro_temp.testing._cases import LossCase, PenaltyCase, TransformCase

_KINDS = (False, True)  # classes, pairs
_SEEDS = st.integers(0, 999)
_GRID = torch.linspace(-50.0, 50.0, 201, dtype=torch.float64)  # of scores


def gives_one_value_per_row(case: LossCase) -> None:
    """Shape [n], float32 or better, also from low precision; one row, and two."""
    for n in (1, 2, 5):
        for pairs in _KINDS:
            values = case.build()(case.rows(n, pairs=pairs), case.tau(n))
            assert values.shape == (n,), f"expected values of shape [{n}], received {list(values.shape)}"
            assert values.dtype == torch.float64, f"expected float64 of float64 rows, received {values.dtype}"
    low = case.rows(4, scores=case.rows(4).dense_scores.bfloat16())
    assert case.build()(low, case.tau(4).bfloat16()).dtype == torch.float32


def works_row_by_row(case: LossCase) -> None:
    """A row's value, and its gradient, do not depend on the other rows of the batch."""
    for pairs in _KINDS:
        rows, tau = case.rows(5, pairs=pairs), case.tau(5)
        scores = rows.dense_scores.clone()
        learned = case.learned(scores)
        values = case.build()(case.rows(5, pairs=pairs, scores=scores), tau)
        for i in range(5):
            one = slice(i, i + 1)
            alone = case.build()(rows.select(one), tau[one])
            what = f"value of row {i} of 5, and by itself (pairs={pairs})"
            assert_same(values[one].detach(), alone, what, rtol=1e-9, atol=1e-12)
        for gradient in torch.autograd.grad(values[1], learned) if learned else ():
            gradient[1] = 0.0
            assert not gradient.any(), (
                "expected no gradient of the value of row 1 to the scores of other rows"
            )


def _assert_streams(
    loss: StreamingLoss,
    case: LossCase,
    pairs: bool,
    transform: ScoreTransform | None = None,
    groups: dict[str, Tensor] | None = None,
) -> None:
    generator, tau = torch.Generator().manual_seed(0), case.tau(5).requires_grad_()
    queries, keys = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (5, case.outcomes))
    leaves = (*case.learned(queries, keys), tau)
    scores = LinearScores(queries, keys, transform=transform)
    rows = case.rows(5, pairs=pairs, scores=scores, **dict[str, Any](groups or {}))

    def run(backend: BackendOption) -> tuple[Tensor, ...]:
        loss.backend = backend
        values = loss(rows, tau)
        return values.detach(), *torch.autograd.grad(values.mean(), leaves)

    expected = run("reference")
    made = AssertionError(
        "expected a streaming loss to read log_g and tau alone, it made the scores of its rows"
    )
    with mock.patch.object(LinearScores, "dense", side_effect=made):
        streamed = run("torch")
    what = f"values and gradients block by block, and from the matrix (pairs={pairs})"
    assert_same(streamed, expected, what, rtol=1e-8, atol=1e-10)


def streams_what_it_computes(case: LossCase) -> None:
    """Where scores are products, values and gradients are those of the score matrix, which is not made."""
    for pairs in _KINDS:
        if isinstance(loss := case.build(), StreamingLoss):
            _assert_streams(loss, case, pairs)


def leaves_excluded_outcomes_out(case: LossCase) -> None:
    """What `Rows.excluded` says is no outcome has no influence and gets no gradient; a group alone has no effect."""
    for pairs in _KINDS:
        rows, tau = case.rows(5, pairs=pairs), case.tau(5)
        scores = rows.dense_scores.clone()
        alone: Any = {"group": rows.target * 0 + F.UNGROUPED, "column_group": torch.arange(case.outcomes)}
        what = f"values where each row is alone in its group, and without groups (pairs={pairs})"
        assert_same(
            case.build()(replace(rows, **alone), tau), case.build()(rows, tau), what, rtol=1e-9, atol=1e-12
        )
        groups: Any = case.groups(rows)
        if case.positives:  # of a group: outcomes; what is left out is none
            groups["column_group"] = groups["column_group"].clamp(max=F.UNGROUPED)
        grouped = case.rows(5, pairs=pairs, **groups)
        excluded = grouped.excluded
        assert excluded is not None
        assert excluded.any()
        learned = case.learned(scores)
        values = case.build()(replace(grouped, scores=scores), tau)
        for gradient in torch.autograd.grad(values.sum(), learned) if learned else ():
            some = gradient[excluded].any()
            assert not some, (
                f"expected no gradient of scores that groups exclude, received some (pairs={pairs})"
            )
        for other in (scores.detach() + 3.0, torch.full_like(scores, 1e4)):
            moved = torch.where(excluded, other, scores.detach())
            again = case.build()(replace(grouped, scores=moved), tau)
            what = f"values with other scores where groups exclude them, and before (pairs={pairs})"
            assert_same(again.detach(), values.detach(), what, rtol=1e-9, atol=1e-12)


def streams_with_groups(case: LossCase) -> None:
    """Where scores are products, values and gradients of rows with groups are those of the score matrix as well."""
    for pairs in _KINDS:
        if isinstance(loss := case.build(), StreamingLoss):
            _assert_streams(loss, case, pairs, groups=case.groups(case.rows(5)))


def knows_whether_the_target_is_an_outcome(case: LossCase) -> None:
    """The target of a class is an outcome, that of a pair is not; or, where the case says so, it always counts.

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


@few_examples
@given(_SEEDS, st.booleans())
def takes_the_worst_case(case: LossCase, seed: int, pairs: bool) -> None:
    """A robust value is above the mean margin, and outcomes weigh more the higher they score."""
    if not case.robust:
        return
    rows, tau = case.rows(5, seed=seed, pairs=pairs), case.tau(5, seed=seed)
    scores = rows.dense_scores.clone().requires_grad_()
    values = case.build()(case.rows(5, seed=seed, pairs=pairs, scores=scores), tau)
    degree = 1 if case.degree is None else case.degree
    mean = (rows.margins.sum(1) / rows.support_size) * tau ** (degree - 1)
    assert (values > mean).all(), (
        f"robust=True: expected values above the mean margins {mean}, received {values.detach()}. Check the sign and "
        "the support of the loss, or pass robust=False."
    )
    (weights,) = torch.autograd.grad(values.sum(), scores)
    # Every column but the target's, from the lowest score to the highest.
    order = rows.dense_scores.scatter(1, rows.target[:, None], -torch.inf).argsort(1)[:, 1:]
    ordered = weights.gather(1, order)
    rises = (ordered.diff() >= -1e-12).all() and (ordered[:, -1] > ordered[:, 0]).all()
    assert rises & (ordered >= -1e-12).all(), (
        "robust=True: expected outcomes to weigh more the higher they score, received, from the lowest score to "
        f"the highest, {ordered}. Check the sign and the support of the loss, or pass robust=False."
    )


@few_examples
@given(_SEEDS, st.floats(-100, 100), st.booleans())
def ignores_a_constant_in_scores(case: LossCase, seed: int, shift: float, pairs: bool) -> None:
    """F(s + c) = F(s): only margins matter; or, where the case says so, they are not all that does."""
    rows, tau = case.rows(5, seed=seed, pairs=pairs), case.tau(5, seed=seed)
    values = case.build()(rows, tau)
    shift = shift if case.margins_only else 1.0
    moved = case.build()(replace(rows, scores=rows.dense_scores + shift), tau)
    if case.margins_only:
        assert_same(moved, values, f"values of scores + {shift}, and of the scores", rtol=1e-9, atol=1e-9)
    else:
        same = torch.allclose(moved, values)
        assert not same, "margins_only=False: expected other values of scores + 1, received the same"


@few_examples
@given(_SEEDS, st.floats(0.01, 100), st.booleans())
def scales_as_declared(case: LossCase, seed: int, c: float, pairs: bool) -> None:
    """F(c h, c tau) = c^k F(h, tau), k the case's degree."""
    if case.degree is None:
        return
    rows, tau = case.rows(5, seed=seed, pairs=pairs), case.tau(5, seed=seed)
    scaled = case.rows(5, seed=seed, pairs=pairs, scores=c * rows.dense_scores)
    expected = c**case.degree * case.build()(rows, tau)
    what = f"degree={case.degree}: values of {c} times scores and tau, and {c}^{case.degree} times the values"
    assert_same(case.build()(scaled, c * tau), expected, what, rtol=1e-9, atol=1e-9)


@few_examples
@given(_SEEDS, st.booleans())
def follows_a_permutation(case: LossCase, seed: int, pairs: bool) -> None:
    """The order of rows, and of outcomes, does not matter."""
    rows, tau = case.rows(6, seed=seed, pairs=pairs), case.tau(6, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    order, columns = (torch.randperm(n, generator=generator) for n in (6, case.outcomes))
    scores, target = rows.dense_scores[order][:, columns], columns.argsort()[rows.target][order]
    shuffled = replace(rows.select(order), scores=scores, target=target)
    expected = case.build()(rows, tau)[order]
    what = "values of rows and outcomes in another order"
    assert_same(case.build()(shuffled, tau[order]), expected, what, rtol=1e-9, atol=1e-12)


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
    what = "values of all probability on the target, and of the target"
    assert_same(hard, values, what, rtol=1e-9, atol=1e-9)
    counts = not torch.isclose(smoothed, values).any()
    assert counts, "expected the target distribution to count, received the values of the targets"


def leaves_masked_rows_inert(case: LossCase) -> None:
    """A row of weight zero has value and gradient zero, whatever it holds; other weights are left to the reduction."""
    clean, tau, keep = case.rows(4), case.tau(4).requires_grad_(), torch.tensor([0, 1, 3])
    reference = case.build()(clean, tau)[keep]
    for junk in (float("nan"), float("inf"), 1e30):
        scores = clean.dense_scores.clone()
        scores[2] = junk
        learned = case.learned(scores)
        weight = torch.tensor([1.0, 2.0, 0.0, 1.0])
        values = case.build()(case.rows(4, scores=scores, weight=weight), tau)
        to_tau, *to_scores = torch.autograd.grad(values.sum(), (tau, *learned))
        what = f"values of rows of weight 1, 2 and 1 beside one of weight 0 that holds {junk}"
        assert_same(values[keep], reference, what, rtol=1e-7, atol=1e-7)
        inert = values[2] == 0 and to_tau[2] == 0 and not any(x[2].any() for x in to_scores)
        assert inert, f"expected value and gradient 0 of a row of weight 0 that holds {junk}"
        assert all(x.isfinite().all() for x in to_scores)
    all_masked = case.build()(case.rows(4, weight=torch.zeros(4)), tau)
    assert (all_masked == 0).all()


@few_examples
@given(_SEEDS, st.sampled_from([0.005, 0.05, 1.0, 5.0]), st.booleans())
def survives_extreme_scores(case: LossCase, seed: int, tau: float, pairs: bool) -> None:
    """Scores of +-1e4 at temperatures down to 0.005 give finite values and gradients in float32."""
    scores = 1e4 * case.rows(4, seed=seed).dense_scores.sign().float()
    learned = case.learned(scores)
    temperatures = torch.full((4,), tau, requires_grad=True)
    values = case.build()(case.rows(4, seed=seed, pairs=pairs, scores=scores), temperatures)
    found = (values, *torch.autograd.grad(values.sum(), (temperatures, *learned)))
    for name, x in zip(("values", "tau's gradient", "scores' gradient"), found, strict=False):
        assert x.isfinite().all(), f"expected finite {name}, received {x}"


def has_the_right_gradient_at_first_sight(case: LossCase) -> None:
    """On rows never seen before, the gradient is that of the value: checked by finite differences in float64."""
    for pairs in _KINDS:

        def value(scores: Tensor, tau: Tensor, pairs: bool = pairs) -> Any:
            return case.build()(case.rows(2, pairs=pairs, scores=scores), tau)

        scores, tau = case.rows(2).dense_scores, case.tau(2).requires_grad_()
        case.learned(scores)
        inputs = (scores, tau)
        assert torch.autograd.gradcheck(value, inputs, rtol=1e-6, atol=1e-7)


def trains_the_host_or_says_so(case: LossCase) -> None:
    """Scores that require gradient get one; or, where the case says so, they are refused, with a ValueError."""
    scores = case.rows(3).dense_scores.requires_grad_()
    rows = case.rows(3, scores=scores)
    try:
        values = case.build()(rows, case.tau(3))
    except ValueError:
        assert not case.trains_host, "trains_host=True: expected scores with gradient to be taken"
        return
    assert case.trains_host, "trains_host=False: expected a ValueError for scores that require gradient"
    to_scores = torch.autograd.grad(values.sum(), scores, allow_unused=True) if values.requires_grad else ()
    assert any(x is not None for x in to_scores), (
        "expected a gradient of the scores, received none. Refuse them with a ValueError, and pass trains_host=False."
    )


def forward_writes_nothing(case: LossCase | PenaltyCase) -> None:
    """Forward, repeated, with and without gradients, in training and eval: the state stays as it was."""
    inputs = (case.rows(4), case.tau(4)) if isinstance(case, LossCase) else (case.rows(*case.vectors(4)),)
    assert_writes_nothing(case.build(), *inputs)


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


def gives_one_number(case: PenaltyCase) -> None:
    """A finite scalar, float32 or better, under a name; for one pair, and several."""
    assert isinstance(case.build().name, str)
    for n in (1, 2, 5):
        value = case.build()(case.rows(*case.vectors(n)))
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert value.isfinite()
    x, y = case.vectors(5)
    assert case.build()(case.rows(x.bfloat16(), y.bfloat16())).dtype == torch.float32


def does_not_depend_on_the_order_of_pairs(case: PenaltyCase) -> None:
    """Shuffling the batch changes nothing."""
    x, y = case.vectors(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    shuffled = case.build()(case.rows(x[order], y[order]))
    assert_same(shuffled, case.build()(case.rows(x, y)), "pairs in another order", rtol=1e-12, atol=1e-12)


def has_the_gradient_of_its_value(case: PenaltyCase) -> None:
    """Checked by finite differences in float64, to both sides; and it is not zero."""
    x, y = (side.requires_grad_() for side in case.vectors(4))
    penalty = case.build()
    assert torch.autograd.gradcheck(lambda x, y: penalty(case.rows(x, y)), (x, y))
    gradients = torch.autograd.grad(penalty(case.rows(x, y)), (x, y))
    for gradient, view in zip(gradients, case.views, strict=True):
        assert gradient.any(), f"expected a gradient to view {view!r}"


def ignores_autocast(case: PenaltyCase) -> None:
    """Similarities are computed in float32 or better."""
    x, y = (side.float() for side in case.vectors(4))
    penalty = case.build()
    plain = penalty(case.rows(x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(penalty(case.rows(x, y)), plain, "under autocast")


def increases(case: TransformCase) -> None:
    """A higher score stays the higher one; equal only where it saturates."""
    values = case.build()(_GRID)
    assert (values.diff() >= 0).all(), "expected an increasing function of the scores"
    assert values[99] < values[100] < values[101], f"expected it to increase at 0, received {values[99:102]}"


def works_elementwise(case: TransformCase) -> None:
    """Each score is transformed by itself, whatever the shape."""
    transform, values = case.build(), case.build()(_GRID)
    assert_same(transform(_GRID.view(3, 67)), values.view(3, 67), "scores of shape [3, 67]", rtol=1e-12)
    assert_same(transform(_GRID[60:61]), values[60:61], "one score, without the others", rtol=1e-12)


def applies_in_place(case: TransformCase) -> None:
    """`apply_` gives the same, in the memory of its argument; calling it leaves the argument alone."""
    transform, scores = case.build(), _GRID.clone()
    values = transform(scores)
    assert_same(scores, _GRID, "the scores after a call, which should leave them alone")
    applied = transform.apply_(scores)
    assert_same(applied, values, "apply_(scores), and the call", rtol=1e-12)
    assert applied.data_ptr() == scores.data_ptr(), "expected apply_ to write into its argument"


def has_the_slope_of_its_values(case: TransformCase) -> None:
    """`slope_` of the *transformed* scores is the derivative, in the memory of its argument."""
    transform, scores = case.build(), _GRID.clone().requires_grad_()
    values = transform(scores)
    (derivative,) = torch.autograd.grad(values.sum(), scores)
    transformed = values.detach().clone()
    slope = transform.slope_(transformed)
    assert_same(slope, derivative, "slope_(transformed scores), and the derivative", rtol=1e-6, atol=1e-9)
    assert slope.data_ptr() == transformed.data_ptr(), "expected slope_ to write into its argument"


def keeps_precision(case: TransformCase) -> None:
    """The dtype stays; large scores give finite values, and slopes that are finite and not negative."""
    transform = case.build()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        values = transform(torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], dtype=dtype))
        slope = transform.slope_(values.clone())
        assert values.dtype == slope.dtype == dtype
        assert values.isfinite().all(), f"expected finite values, received {values}"
        assert (slope.isfinite() & (slope >= 0)).all(), f"expected finite slopes >= 0, received {slope}"


def streams_as_the_matrix(case: TransformCase) -> None:
    """A loss over products has the same values and gradients whether the score matrix is made or not."""
    _assert_streams(InfoNCELoss(), LossCase("infonce", InfoNCELoss), False, case.build())
