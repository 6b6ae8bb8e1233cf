"""What every transform of scores must do."""

from typing import Any

import torch
from torch import Tensor

from dro_temp.interfaces import LinearScores, Rows
from dro_temp.losses import InfoNCELoss
from dro_temp.testing._asserts import assert_same
from dro_temp.testing._cases import TransformCase

_GRID = torch.linspace(-50.0, 50.0, 201, dtype=torch.float64)


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

    def evaluated(backend: Any) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        q, k = (torch.randn(n, 4, generator=generator, dtype=torch.float64).requires_grad_() for n in (6, 9))
        rows = Rows(LinearScores(q, k, transform=case.build()), torch.arange(6))
        values = InfoNCELoss(backend=backend)(rows, 0.7)
        return values.detach(), *torch.autograd.grad(values.sum(), (q, k))

    what = "values and gradients, block by block and from the matrix"
    assert_same(evaluated("torch"), evaluated("reference"), what, rtol=1e-8, atol=1e-10)
