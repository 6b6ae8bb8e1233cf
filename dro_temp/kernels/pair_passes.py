"""The elementwise work on a stripe of pair scores, in plain PyTorch; a kernel for a device has the same signatures.

A stripe is some rows by all columns. Its rows end inside it; its columns go on in the next stripe, so that their
sums are kept relative to the largest score so far.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.products import add_up as add_up
from dro_temp.kernels.products import scorer as scorer
from dro_temp.kernels.workspace import scratch


@dataclass
class ColumnSums:
    r"""Running sums of each column under $e^{(s_{ij} - \max_i s_{ij}) / \tau_j}$.

    Args:
        top: largest score so far.
        total: sum of the weights.
        moment: sum of weight times score.
    """

    top: Tensor
    total: Tensor
    moment: Tensor

    @classmethod
    def start(cls, like: Tensor) -> "ColumnSums":
        """Before the first stripe."""
        return cls(torch.full_like(like, -torch.inf), torch.zeros_like(like), torch.zeros_like(like))


@dataclass(frozen=True)
class RowSums:
    """Sums of each row, relative to its largest score.

    Args:
        top: largest score.
        total: sum of the weights.
        excess: mean score under the weights, minus `top`.
    """

    top: PerRow
    total: PerRow
    excess: PerRow


def sum_rows(scores: Scores, tau: PerRow) -> RowSums:
    """Row sums of a stripe; the scores stay."""
    top = scores.amax(1)
    with scratch(scores, 2) as (below, weights):
        torch.sub(scores, top[:, None], out=below)
        torch.div(below, tau[:, None], out=weights).exp_()
        total = weights.sum(1)
        return RowSums(top, total, below.mul_(weights).sum(1) / total)


def sum_columns_(scores: Scores, tau: Tensor, sums: ColumnSums) -> None:
    """Add a stripe to the column sums; the scores stay."""
    top = torch.maximum(sums.top, scores.amax(0))
    decay = ((sums.top - top) / tau).exp()
    with scratch(scores) as (weights,):
        torch.sub(scores, top, out=weights).div_(tau).exp_()
        sums.total.mul_(decay).add_(weights.sum(0))
        sums.moment.mul_(decay).add_(weights.mul_(scores).sum(0))
    sums.top.copy_(top)


def couple_(
    scores: Scores,
    tau_rows: PerRow,
    top_rows: PerRow,
    share_rows: PerRow,
    tau_columns: Tensor,
    top_columns: Tensor,
    share_columns: Tensor,
) -> Scores:
    r"""Gradient with respect to the scores of a stripe, in their place.

    $G_{ij} = a_i e^{(s_{ij} - M_i) / \tau_i} + b_j e^{(s_{ij} - M_j) / \tau_j}$

    Args:
        scores: s.
        tau_rows: temperature of each row.
        top_rows: M, largest score of each row.
        share_rows: a, what comes back for the row's log-sum, over tau and over its sum of weights.
        tau_columns: as for rows, of each column.
        top_columns: as for rows.
        share_columns: as for rows.
    """
    with scratch(scores) as (by_columns,):
        torch.sub(scores, top_columns, out=by_columns).div_(tau_columns).exp_().mul_(share_columns)
        scores.sub_(top_rows[:, None]).div_(tau_rows[:, None]).exp_().mul_(share_rows[:, None])
        return scores.add_(by_columns)
