r"""Rows of a score matrix that exists already, on a GPU: one kernel for the log-mean-exp, one for its gradient.

    log_g   = log 1/m sum_j e^((s_ij - s_it) / tau_i)   [n]    one read of the matrix
    G       = u / tau (softmax(s / tau) - onehot)       [n m]  one read, one write

Plain PyTorch takes some fifteen launches for the first and twenty for the second, which is what a step of a small
classifier waits for.
"""

import math
from typing import Any

import torch
from torch import Tensor

from dro_temp._autograd import refuse_second_derivative
from dro_temp._typing import PerRow, RowIndex, Scores
from dro_temp.kernels.backends.protocol import Coefficients, FusedRows, Groups, RowBlock, TiltedRows
from dro_temp.kernels.exclusions import Exclusions


def log_mean_exp_of_matrix(
    kernels: FusedRows,
    scores: Scores,
    target: RowIndex,
    tau: PerRow,
    *,
    target_in_support: bool,
    support_size: int,
    exclusions: Exclusions | None = None,
) -> PerRow:
    """Log-mean-exp of each row's margins over tau, with first derivatives.

    Args:
        kernels: of the backend.
        scores: [n m], in float32 or better.
        target: column of each row's target.
        tau: temperature of each row, of the scores' precision.
        target_in_support: False to leave each row's target out of its support.
        support_size: number of outcomes in the support, > 0, by whose log every sum is lowered.
        exclusions: columns that groups exclude, or None. What is returned of a row without outcomes means nothing.

    Raises:
        RuntimeError: for a second derivative.
    """
    log_size = math.log(support_size)
    log_g: PerRow = _LogMeanExp.apply(  # type: ignore[no-untyped-call]
        kernels,
        (target_in_support, log_size),
        None if exclusions is None else exclusions.groups(),
        scores,
        target,
        tau,
    )
    return log_g


class _LogMeanExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: FusedRows,
        support: tuple[bool, float],
        groups: Groups | None,
        scores: Scores,
        target: RowIndex,
        tau: PerRow,
    ) -> PerRow:
        scores = scores if scores.stride(1) == 1 else scores.contiguous()
        rows = kernels.tilt_rows(RowBlock(scores, target, support[0], support[1], groups=groups), tau)
        ctx.kernels, ctx.support, ctx.groups = kernels, support, groups
        sums = (rows.target_score, rows.mean, rows.row_max, rows.sum_exp)
        ctx.save_for_backward(scores, target, tau, rows.log_g, *sums)
        return rows.log_g

    @staticmethod
    def backward(ctx: Any, u: PerRow) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("a loss over a score matrix on a GPU")
        scores, target, tau, log_g, target_score, mean, row_max, sum_exp = ctx.saved_tensors
        rows = TiltedRows(log_g, target_score, mean, row_max, sum_exp, variance=None)
        scores_grad = tau_grad = None
        if ctx.needs_input_grad[3]:
            scores_grad = torch.empty_like(scores)
            block = RowBlock(scores, target, ctx.support[0], ctx.support[1], groups=ctx.groups)
            ctx.kernels.write_gradient(block, tau, rows, Coefficients(u), out=scores_grad)
        if ctx.needs_input_grad[5]:
            tau_grad = u * (target_score - mean) / tau.square()
        return None, None, None, scores_grad, None, tau_grad
