"""What every penalty over the views of a batch must do."""

import torch

from dro_temp.testing._asserts import assert_same, assert_writes_nothing
from dro_temp.testing._cases import PenaltyCase


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


def forward_writes_nothing(case: PenaltyCase) -> None:
    """A second forward over the same rows gives the same, and the state stays as it was."""
    assert_writes_nothing(case.build(), case.rows(*case.vectors(4)))
