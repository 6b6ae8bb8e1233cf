"""Temperatures of many rows, a block at a time: predicted in forward, and again in backward."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dro_temp._compiler import outside_graphs
from dro_temp._typing import PerRow
from dro_temp.kernels.predicted import added
from dro_temp.kernels.randomness import Randomness
from dro_temp.kernels.refusals import refuse_second_derivative

#: Rows whose temperatures are predicted at a time: a network's activations for so many are small enough to be
#: carved out of the same memory again and again, and the products with them still fast.
BLOCK_OF_ROWS = 512

#: `(rows, parameters) -> tau`: temperatures of some rows, computed with these parameters.
TauOfRows: TypeAlias = Callable[[slice, tuple[Tensor, ...]], PerRow]


@outside_graphs
def predicted_in_blocks(
    predict: TauOfRows, n: int, parameters: tuple[Tensor, ...], *, random: bool
) -> PerRow:
    """Temperatures of n rows; no buffer grows with n, since nothing of a block is kept for its gradient.

    Activation checkpointing does the same with hooks whose leavings between blocks break up the heap: four times
    the memory of a block, at 16,384 rows.

    Args:
        predict: temperatures of a block.
        n: number of rows, > 0.
        parameters: those that gradients flow to.
        random: whether predicting draws random numbers (dropout): backward must draw the same ones.
    """
    tau: Tensor = _InBlocks.apply(predict, n, random, *parameters)  # type: ignore[no-untyped-call]
    return tau


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, predict: TauOfRows, n: int, random: bool, *parameters: Tensor) -> Tensor:
        device = parameters[0].device
        ctx.predict, ctx.n = predict, n
        ctx.autocast = torch.autocast(
            device.type, torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        )
        ctx.randomness = Randomness(device) if random else None
        ctx.save_for_backward(*parameters)
        return torch.cat([predict(rows, parameters) for rows in _blocks(n)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(
            f"the temperatures of more than {BLOCK_OF_ROWS} rows",
            "Call the predictor itself, predictor(features), which is ordinary autograd.",
        )
        # Aliases: a hook on a real parameter is to see one gradient, that of all rows.
        aliases = tuple(p.detach().requires_grad_(p.requires_grad) for p in ctx.saved_tensors)
        trained = [p for p in aliases if p.requires_grad]
        if ctx.randomness is None:
            totals = _totals(ctx, aliases, trained, grads[0])
        else:
            with ctx.randomness.replayed():
                totals = _totals(ctx, aliases, trained, grads[0])
        found = iter(totals)
        return None, None, None, *(next(found) if p.requires_grad else None for p in aliases)


def _totals(
    ctx: Any, parameters: tuple[Tensor, ...], trained: list[Tensor], gradient: PerRow
) -> list[Tensor | None]:
    """Gradient of each trained parameter, summed over the blocks."""
    # Parameters themselves too, where an operation took them as they are: see `Substituted`.
    leaves = [*trained, *(p for p in ctx.saved_tensors if p.requires_grad)]
    totals: list[Tensor | None] = [None] * len(trained)
    for rows in _blocks(ctx.n):
        with torch.enable_grad(), ctx.autocast:
            tau = ctx.predict(rows, parameters)
        parts = torch.autograd.grad(tau, leaves, gradient[rows], allow_unused=True)
        for k, part in enumerate(parts):
            totals[k % len(trained)] = added(totals[k % len(trained)], part)
    return totals


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK_OF_ROWS, n)) for start in range(0, n, BLOCK_OF_ROWS)]
