"""The contract of an estimator."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from dro_temp._typing import PerRow, RowIndex, RowMask


class Estimator(nn.Module, ABC):
    """Estimates log E_j exp(h_ij / tau_i), the log of the inner mean of a row, from minibatches."""

    #: True if each row's estimate depends on that row's `log_g` alone: rows may then be processed block by block.
    row_by_row: ClassVar[bool] = False

    @abstractmethod
    def propose(self, index: RowIndex | None, log_g: PerRow, valid: RowMask) -> Tensor | None:
        """The estimate after this minibatch; None where `log_g` itself is exact.

        Staged for a later commit in training mode with gradients enabled; otherwise only computed. Outside
        training `index` may be None: held-out samples have no number, and their estimate is the batch's.

        Args:
            index: the rows' numbers in the data set.
            log_g: log of the minibatch mean of each row.
            valid: True for rows that count; the others change nothing.
        """

    @abstractmethod
    def population(self, batch_support: int) -> int:
        """Number of outcomes in the estimated mean, from the number in the batch."""
