"""The backend in plain PyTorch, for any device and precision.

Elementwise passes go over a few rows at a time (`row_groups`), which stay in a CPU's cache from pass to pass, in reused
scratch memory: a fresh page costs a CPU more than the arithmetic that fills it (`memory`).
"""

import torch
from torch import Tensor

from dro_temp._tensors import row_groups
from dro_temp._typing import PerRow, Scores
from dro_temp.functional.statistics import score_moments, score_profile
from dro_temp.kernels.backends.protocol import (
    ColumnSums,
    FusedPairs,
    FusedRows,
    FusedSigmoid,
    SoftmaxPartials,
)
from dro_temp.kernels.memory import scratch
from dro_temp.kernels.products import accumulate_, scorer

__all__ = [
    "accumulate_",
    "column_sums_",
    "fused_pairs",
    "fused_rows",
    "fused_sigmoid",
    "moments",
    "pair_logits_grad_",
    "profile",
    "row_sums",
    "scorer",
    "softmax_partials_",
]

moments, profile = score_moments, score_profile
fused_pairs: FusedPairs | None = None
fused_rows: FusedRows | None = None
fused_sigmoid: FusedSigmoid | None = None


def softmax_partials_(
    scores: Scores, tau: PerRow, *, mean_excess: bool, factor: torch.dtype | None = None
) -> SoftmaxPartials:
    """See `Backend.softmax_partials_`."""
    row_max, sum_exp = (scores.new_empty(len(scores)) for _ in range(2))
    excess = torch.empty_like(row_max) if mean_excess else None
    for rows in row_groups(scores):
        weights = scores[rows]  # [rows m]
        torch.amax(weights, 1, out=row_max[rows])
        weights.sub_(row_max[rows, None])
        below = weights.clone() if mean_excess else None
        weights.div_(tau[rows, None]).exp_()
        torch.sum(weights, 1, out=sum_exp[rows])
        if excess is not None and below is not None:
            excess[rows] = below.mul_(weights).sum(1) / sum_exp[rows]
    return SoftmaxPartials(row_max, sum_exp, excess, scores.to(factor or scores.dtype))


def row_sums(scores: Scores, tau: PerRow) -> SoftmaxPartials:
    """See `Backend.row_sums`."""
    row_max = scores.amax(1)  # [rows]
    with scratch(scores, 2) as (below, weights):  # [rows m]
        torch.sub(scores, row_max[:, None], out=below)
        torch.div(below, tau[:, None], out=weights).exp_()
        sum_exp = weights.sum(1)
        return SoftmaxPartials(row_max, sum_exp, below.mul_(weights).sum(1) / sum_exp)


def column_sums_(scores: Scores, tau: Tensor, sums: ColumnSums) -> None:
    """See `Backend.column_sums_`."""
    column_max = torch.maximum(sums.column_max, scores.amax(0))  # [m]
    decay = ((sums.column_max - column_max) / tau).exp()  # rescales earlier sums to the new maximum, [m]
    with scratch(scores) as (weights,):  # [rows m]
        torch.sub(scores, column_max, out=weights).div_(tau).exp_()
        sums.sum_exp.mul_(decay).add_(weights.sum(0))
        sums.moment.mul_(decay).add_(weights.mul_(scores).sum(0))
    sums.column_max.copy_(column_max)


def pair_logits_grad_(
    scores: Scores,
    tau_rows: PerRow,
    max_rows: PerRow,
    share_rows: PerRow,
    tau_columns: Tensor,
    max_columns: Tensor,
    share_columns: Tensor,
) -> Scores:
    """See `Backend.pair_logits_grad_`."""
    with scratch(scores) as (by_columns,):  # the columns' share of the gradient, [rows m]
        torch.sub(scores, max_columns, out=by_columns).div_(tau_columns).exp_().mul_(share_columns)
        scores.sub_(max_rows[:, None]).div_(tau_rows[:, None]).exp_().mul_(share_rows[:, None])
        return scores.add_(by_columns)
