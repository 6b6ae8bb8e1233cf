"""The elementwise work on a stripe of pair scores, in plain PyTorch; a kernel for a device has the same signatures.

A stripe is some rows by all columns. Its rows end inside it; its columns go on in the next stripe, so that their
sums are kept relative to the largest score so far.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores


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


def sum_rows(scores: Scores, tau: PerRow, weights: Scores, spare: Scores) -> RowSums:
    """Row sums of a stripe; `weights` receives the weights, `spare` is scratch, the scores stay."""
    top = scores.amax(1)
    torch.sub(scores, top[:, None], out=spare)
    torch.div(spare, tau[:, None], out=weights).exp_()
    total = weights.sum(1)
    return RowSums(top, total, spare.mul_(weights).sum(1) / total)


def sum_columns_(scores: Scores, tau: Tensor, sums: ColumnSums, weights: Scores, spare: Scores) -> None:
    """Add a stripe to the column sums; `weights` receives weights relative to `sums.top` as it then is."""
    top = torch.maximum(sums.top, scores.amax(0))
    decay = ((sums.top - top) / tau).exp()
    torch.sub(scores, top, out=weights).div_(tau).exp_()
    sums.total.mul_(decay).add_(weights.sum(0))
    sums.moment.mul_(decay).add_(torch.mul(scores, weights, out=spare).sum(0))
    sums.top.copy_(top)


def couple_(
    scores: Scores,
    tau_rows: PerRow,
    top_rows: PerRow,
    share_rows: PerRow,
    tau_columns: Tensor,
    top_columns: Tensor,
    share_columns: Tensor,
    spare: Scores,
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
        spare: scratch.
    """
    torch.sub(scores, top_columns, out=spare).div_(tau_columns).exp_().mul_(share_columns)
    scores.sub_(top_rows[:, None]).div_(tau_rows[:, None]).exp_().mul_(share_rows[:, None])
    return scores.add_(spare)
