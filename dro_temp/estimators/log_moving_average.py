"""The moving average of every sample's inner mean, as one log-number per sample."""

import math
from collections.abc import Callable
from typing import Any

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

    Source: arXiv 2202.12387 (SogCLR), with the average kept in the log domain: no epsilon, clamp or running
    maximum, and 4 bytes per sample.
    """

    needs_index = True
    log_u: Tensor
    steps: Tensor

    def __init__(self, num_samples: int, *, gamma: float | GammaSchedule = 0.8) -> None:
        super().__init__()
        check_count("num_samples", num_samples)
        self.num_samples = num_samples
        self.gamma = as_schedule(gamma)
        # -inf, not 0, says "never seen": 0 is the legal estimate of a row whose margins are all zero.
        self.register_buffer("log_u", torch.full((num_samples,), -math.inf))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def propose(self, index: RowIndex | None, log_g: PerRow, valid: RowMask) -> PerRow:
        """The average as it would be after this minibatch; staged in training with gradients enabled."""
        if index is None:
            raise ValueError(
                "expected the sample numbers of the rows for LogMovingAverage, received index=None. Call "
                "objective(..., index=index) with each sample's place in the data set "
                "(dro_temp.datasets.Indexed adds it), or use KLRobustLoss(rho) without an estimator."
            )
        index = check_index(index, self.num_samples)
        # Rows that do not count keep out of everyone's way: they get a number that no sample has.
        index, log_g = index.masked_fill(~valid, -1), log_g.detach()
        start = 0
        if self.training and torch.is_grad_enabled():
            n = len(index)
            index, start = distributed.gather_rows(index)
            log_g, _ = distributed.gather_rows(log_g)
            self.stage(index, log_g)
            return self._averaged(index, log_g)[start : start + n]
        return self._averaged(index, log_g)

    def _averaged(self, index: RowIndex, log_g: PerRow) -> PerRow:
        held = self.log_u[index.clamp(min=0)].to(log_g.dtype)
        return F.log_average(held, F.combine_duplicates(index, log_g), self.gamma(self.steps))

    def write(self, *parts: Tensor) -> None:
        """Write the staged averages and advance gamma."""
        if parts:
            index, log_g = parts
            valid = index >= 0
            index, log_g = index[valid], log_g[valid]
            self.log_u[index] = self._averaged(index, log_g).to(self.log_u.dtype)
        self.steps += 1

    def population(self, batch_support: int) -> int:
        """All other samples of the data set, or the whole support if that is larger."""
        return max(batch_support, self.num_samples - 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LogMovingAverage":
        # model.bfloat16() must not round the memory: near 100, bfloat16 numbers are 0.5 apart.
        before = self.log_u
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.log_u.dtype in (torch.float16, torch.bfloat16):
            self.log_u = before.to(self.log_u.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(prefix + "log_u")
        if loaded is not None and loaded.shape != self.log_u.shape:
            raise ValueError(
                f"expected the memory of {self.num_samples} samples at {prefix}log_u, received one of "
                f"{loaded.numel()}. Build LogMovingAverage({loaded.numel()}) for the data set that it was "
                "saved with, or delete the key and load with strict=False to start afresh."
            )
        self.discard()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Size of the table."""
        return f"{self.num_samples}"
