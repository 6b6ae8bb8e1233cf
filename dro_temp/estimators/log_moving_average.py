"""The moving average of every sample's inner mean, as one log-number per sample."""

import math

import torch
from torch import Tensor

from dro_temp import distributed
from dro_temp import functional as F
from dro_temp._checks import check_count, check_index
from dro_temp._typing import PerRow, RowIndex, RowMask
from dro_temp.estimators._base import Estimator
from dro_temp.estimators.gamma import GammaSchedule, as_schedule
from dro_temp.interfaces import Staged


class LogMovingAverage(Estimator, Staged):
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

    memory = ("log_u",)
    log_u: Tensor
    steps: Tensor

    def __init__(
        self, num_samples: int, *, gamma: float | GammaSchedule = 0.8, on_host: bool = False
    ) -> None:
        super().__init__()
        self.on_host = on_host
        self.num_samples = check_count("num_samples", num_samples)
        self.gamma = as_schedule(gamma)
        # -inf, not 0, says "never seen": 0 is the legal estimate of a row whose margins are all zero.
        self.remember("log_u", self.num_samples, -math.inf)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def propose(self, index: RowIndex | None, log_g: PerRow, valid: RowMask) -> Tensor | None:
        """The average as it would be after this minibatch; staged in training with gradients enabled."""
        learning = self.training and torch.is_grad_enabled()
        if index is None and not learning:
            return None
        if index is None:
            raise ValueError(
                "expected the sample numbers of the rows for LogMovingAverage, received index=None. Call "
                "objective(..., index=index) with each sample's place in the data set "
                "(dro_temp.datasets.Indexed adds it), or use KLRobustLoss(rho) without an estimator. For held-out "
                "data, which has no such numbers, call objective.eval() first."
            )
        index = check_index(index, self.num_samples)
        # Rows that do not count keep out of everyone's way: they get a number that no sample has.
        index, log_g = index.masked_fill(~valid, -1), log_g.detach()
        start = 0
        if learning:
            n = len(index)
            index, start = distributed.gather_rows(index)
            log_g, _ = distributed.gather_rows(log_g)
            self.stage(index, log_g)
            return self._averaged(index, log_g)[start : start + n]
        return self._averaged(index, log_g)

    def _averaged(self, index: RowIndex, log_g: PerRow) -> PerRow:
        held = self.read("log_u", index.clamp(min=0)).to(log_g.dtype)
        return F.log_average(held, F.combine_duplicates(index, log_g), self.gamma(self.steps))

    def write(self, *parts: Tensor) -> None:
        """Write the staged averages and advance gamma."""
        if not parts:
            return
        index, log_g = parts
        # What is not a number would stay in the memory for good.
        keep = (index >= 0) & log_g.isfinite()
        index, log_g = index[keep], log_g[keep]
        self.put("log_u", index, self._averaged(index, log_g))
        self.steps += 1

    def population(self, batch_support: int) -> int:
        """All other samples of the data set, or the whole support if that is larger."""
        return max(batch_support, self.num_samples - 1)

    def extra_repr(self) -> str:
        """Size of the table."""
        return f"{self.num_samples}"
