"""The contract of a loss on rows."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from dro_temp._checks import check_positive
from dro_temp._typing import PerRow
from dro_temp.interfaces.rows import Rows
from dro_temp.interfaces.scores import at_least_float32


class RobustLoss(nn.Module, ABC):
    """Maps rows and their temperatures to one value per row; reduction belongs to `Objective`.

    The base checks its arguments, keeps everything in float32 or better, and makes rows of weight zero inert.
    A leaf writes `values`.
    """

    @abstractmethod
    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """One value per row. Scores of rows that do not count are zero, and their values are dropped."""

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, rows: Rows, tau: Tensor | float) -> PerRow:
        """Value of each row; zero, with zero gradient, where a row does not count.

        Args:
            rows: scores and targets.
            tau: temperature of each row, > 0, or one for all.
        """
        with torch.autocast(rows.target.device.type, enabled=False):
            rows = rows.dense().inert_where_invalid()
            if isinstance(tau, float | int):
                check_positive("tau", tau)
            tau = torch.as_tensor(tau, device=rows.target.device)
            if tau.dim() > 1 or (tau.dim() == 1 and len(tau) != len(rows)):
                raise ValueError(
                    f"expected tau of shape [{len(rows)}] or a number, received shape {list(tau.shape)}. "
                    "Pass predictor.of(rows)."
                )
            tau = at_least_float32(tau).to(rows.dense_scores.dtype).expand(len(rows))
            tau = tau.masked_fill(~rows.valid, 1.0)
            return self.values(rows, tau).masked_fill(~rows.valid, 0.0)
