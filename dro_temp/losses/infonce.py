"""The contrastive baseline."""

import math

import torch

from dro_temp._typing import PerRow
from dro_temp.interfaces import LogMeanExpLoss, Rows


class InfoNCELoss(LogMeanExpLoss):
    r"""Cross-entropy of the target among all columns, $\log \sum_j e^{h_j / \tau}$ with the target included.

    With one global learnable temperature this is CLIP's loss. Unlike the robust loss it is not scaled by tau,
    and it treats a sampled set of negatives as the whole.

    Args:
        impl: how scores that are products are computed, see `LogMeanExpLoss`.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        >>> dt.InfoNCELoss()(rows, 1.0)
        tensor([0.1269])

    Source: arXiv 1807.03748 (CPC); arXiv 2103.00020 (CLIP).
    """

    def of_log_mean_exp(self, rows: Rows, log_g: PerRow, tau: PerRow) -> PerRow:
        """Minus the log-probability of the target."""
        log_sum = log_g + math.log(max(rows.support_size, 1))
        # The target's own margin is zero; a support that leaves it out gets it back.
        return log_sum if rows.target_in_support else torch.logaddexp(log_sum, torch.zeros_like(log_sum))
