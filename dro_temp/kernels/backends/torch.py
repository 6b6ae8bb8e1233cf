"""The backend in plain PyTorch, for any device and precision."""

import torch
from torch import Tensor

from dro_temp._tensors import row_groups
from dro_temp._typing import PerRow, Scores
from dro_temp.functional.statistics import score_moments, score_profile
from dro_temp.kernels.backends.protocol import ColumnSums, SoftmaxPartials
from dro_temp.kernels.memory import scratch
from dro_temp.kernels.products import accumulate_, scorer

__all__ = [
    "accumulate_",
    "column_sums_",
    "moments",
    "pair_logits_grad_",
    "profile",
    "row_sums",
    "scorer",
    "softmax_partials_",
]

moments, profile = score_moments, score_profile


def softmax_partials_(
    scores: Scores, tau: PerRow, *, mean_excess: bool, factor: torch.dtype | None = None
) -> SoftmaxPartials:
    """See `Backend.softmax_partials_`."""
    row_max, sum_exp = (scores.new_empty(len(scores)) for _ in range(2))
    excess = torch.empty_like(row_max) if mean_excess else None
    for rows in row_groups(scores):  # so few that they stay in the cache from pass to pass
        weights = scores[rows]
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
    top = scores.amax(1)
    with scratch(scores, 2) as (below, weights):
        torch.sub(scores, top[:, None], out=below)
        torch.div(below, tau[:, None], out=weights).exp_()
        total = weights.sum(1)
        return SoftmaxPartials(top, total, below.mul_(weights).sum(1) / total)


def column_sums_(scores: Scores, tau: Tensor, sums: ColumnSums) -> None:
    """See `Backend.column_sums_`."""
    top = torch.maximum(sums.column_max, scores.amax(0))
    decay = ((sums.column_max - top) / tau).exp()
    with scratch(scores) as (weights,):
        torch.sub(scores, top, out=weights).div_(tau).exp_()
        sums.sum_exp.mul_(decay).add_(weights.sum(0))
        sums.moment.mul_(decay).add_(weights.mul_(scores).sum(0))
    sums.column_max.copy_(top)


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
    with scratch(scores) as (by_columns,):
        torch.sub(scores, max_columns, out=by_columns).div_(tau_columns).exp_().mul_(share_columns)
        scores.sub_(max_rows[:, None]).div_(tau_rows[:, None]).exp_().mul_(share_rows[:, None])
        return scores.add_(by_columns)
