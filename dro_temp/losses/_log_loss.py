"""What the losses on likelihood share."""

import torch

from dro_temp._tensors import log_of_size
from dro_temp._typing import PerRow
from dro_temp.interfaces import Rows


def log_loss(rows: Rows, log_g: PerRow) -> PerRow:
    """Minus the log-probability of the target among all columns, from the log-mean-exp over the support."""
    log_sum = log_g + log_of_size(rows.support_size, log_g)
    # The target's own margin is zero; a support that leaves it out gets it back.
    return log_sum if rows.target_in_support else torch.logaddexp(log_sum, torch.zeros_like(log_sum))
