"""The moving average of every sample's inner mean, as one log-number per sample."""

import torch
from torch import Tensor

from dro_temp import functional as F
from dro_temp._typing import PerRow
from dro_temp.estimators._table import LogTable
from dro_temp.estimators.gamma import GammaSchedule, as_schedule


class LogMovingAverage(LogTable):
    r"""$\log u_i \leftarrow \log\left((1-\gamma) u_i + \gamma g_i\right)$ for every sample i of the data set.

    Forward proposes and an optimizer step commits, so a second forward, validation, or a step that a gradient
    scaler skipped leaves the memory as it was. A sample seen several times before a commit (duplicates in a
    batch, accumulation, other processes) contributes the mean of what was seen, in no particular order.

    Args:
        num_samples: size of the data set; sample numbers run from 0 to num_samples - 1.
        gamma: weight of the new minibatch, in (0, 1], or a schedule of it.
        on_host: True to keep the table in host memory (pinned where CUDA is available) wherever the module goes:
            a step then moves its batch's entries only. 400 M samples are 1.6 GB; every process holds the table.

    Raises:
        ValueError: num_samples < 1 or gamma outside (0, 1].
        IndexError: a sample number outside the table.

    Example:
        >>> import torch, dro_temp as dt
        >>> estimator = dt.LogMovingAverage(100, gamma=0.5)
        >>> log_u = estimator.propose(torch.tensor([7]), torch.tensor([2.0]), torch.tensor([True]))
        >>> estimator.log_u[7].item()   # forward reads ...
        -inf
        >>> estimator.commit()          # ... step writes
        >>> estimator.log_u[7].item()
        2.0
        >>> dt.LogMovingAverage(100, on_host=True).to("meta").log_u.device   # "cuda" just the same
        device(type='cpu')

    Source: arXiv 2202.12387 (SogCLR), with the average kept in the log domain: no epsilon, clamp or running
    maximum, and 4 bytes per sample.
    """

    steps: Tensor

    def __init__(
        self, num_samples: int, *, gamma: float | GammaSchedule = 0.8, on_host: bool = False
    ) -> None:
        super().__init__(num_samples, on_host=on_host)
        self.gamma = as_schedule(gamma)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def averaged(self, log_u: PerRow, log_g: PerRow) -> PerRow:
        """The average, with the gamma of the moment."""
        return F.log_average(log_u, log_g, self.gamma(self.steps))

    def write(self, *parts: Tensor) -> None:
        """Write the staged averages and advance gamma."""
        super().write(*parts)
        if parts:
            self.steps += 1
