"""The memory of group DRO."""

import math

import torch
from torch import Tensor

from dro_temp import distributed
from dro_temp._typing import PerRow
from dro_temp.state import Staged


class GroupAdversary(Staged):
    """The weights of groups, as logarithms: exponentiated gradient ascent, one step for each optimizer step.

    Args:
        num_groups: groups are numbered from 0 to num_groups - 1.
        step_size: of the ascent, in units of one over the losses'.
    """

    memory = ("log_q",)
    log_q: Tensor

    def __init__(self, num_groups: int, step_size: float) -> None:
        super().__init__()
        self.step_size = step_size
        self.remember("log_q", num_groups, -math.log(num_groups))

    def propose(self, sums: PerRow, mass: PerRow) -> PerRow:
        """Log weights as they would be after this batch; staged in training with gradients enabled.

        Args:
            sums: weighted sum of each group's losses.
            mass: sum of its weights; 0 for a group that is not in the batch.
        """
        sums, mass = sums.detach(), mass.detach()
        if not (self.training and torch.is_grad_enabled()):
            return self.log_q.to(sums.dtype)
        sums, mass = (distributed.sum_over_processes(part) for part in (sums, mass))
        self.stage(sums[None], mass[None])
        return self._ascended(sums, mass)

    def _ascended(self, sums: PerRow, mass: PerRow) -> PerRow:
        mean = sums / mass.masked_fill(mass == 0, 1.0)
        # What is not a number would stay in the memory for good.
        known = (mass > 0) & mean.isfinite()
        return (self.log_q.to(mean.dtype) + self.step_size * mean.masked_fill(~known, 0.0)).log_softmax(0)

    def write(self, *parts: Tensor) -> None:
        """One step of ascent, on the means over all that was proposed: parts of a batch count as the whole would."""
        if parts:
            sums, mass = (part.sum(0) for part in parts)
            self.put("log_q", torch.arange(len(self.log_q)), self._ascended(sums, mass))
