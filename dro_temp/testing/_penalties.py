"""What every penalty over the views of a batch must do."""

import torch
from torch import Tensor

from dro_temp.testing._cases import PenaltyCase


def gives_one_number(case: PenaltyCase) -> None:
    """A finite scalar, float32 or better; for one pair, and several."""
    for n in (1, 2, 5):
        x, y = case.vectors(n)
        value = case.build()(case.rows(x, y))
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert bool(value.isfinite())
    low = case.build()(case.rows(x.bfloat16(), y.bfloat16()))
    assert low.dtype == torch.float32


def does_not_depend_on_the_order_of_pairs(case: PenaltyCase) -> None:
    """Shuffling the batch changes nothing."""
    x, y = case.vectors(6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        case.build()(case.rows(x[order], y[order])), case.build()(case.rows(x, y)), rtol=1e-12, atol=1e-12
    )


def has_the_gradient_of_its_value(case: PenaltyCase) -> None:
    """Checked by finite differences in float64, to both sides; and it is not zero."""
    x, y = (side.requires_grad_() for side in case.vectors(4))
    penalty = case.build()

    def value(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = penalty(case.rows(x, y))
        return found

    assert torch.autograd.gradcheck(value, (x, y))
    for gradient in torch.autograd.grad(value(x, y), (x, y)):
        assert bool((gradient != 0).any())


def ignores_autocast(case: PenaltyCase) -> None:
    """Similarities are computed in float32 or better."""
    x, y = (side.float() for side in case.vectors(4))
    penalty = case.build()
    plain = penalty(case.rows(x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(penalty(case.rows(x, y)), plain)


CONTRACTS = (
    gives_one_number,
    does_not_depend_on_the_order_of_pairs,
    has_the_gradient_of_its_value,
    ignores_autocast,
)
