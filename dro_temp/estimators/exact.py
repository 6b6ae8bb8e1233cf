"""The estimator of rows whose support is complete."""

from dro_temp._typing import PerRow, RowIndex, RowMask
from dro_temp.interfaces import Estimator


class Exact(Estimator):
    r"""The batch's own mean, taken as it is: $\log u = \log g$.

    Right for tokens and classes, whose support is complete. For pairs it is the plug-in estimate over the batch's
    negatives, which is biased: $\tau \log$ of a sampled mean lies below $\tau \log$ of the mean.

    Example:
        >>> import dro_temp as dt
        >>> loss = dt.KLRobustLoss(rho=1.0, estimator=dt.estimators.Exact())
    """

    row_by_row = True

    def propose(self, index: RowIndex | None, log_g: PerRow, valid: RowMask) -> None:
        """None: `log_g` is exact."""

    def population(self, batch_support: int) -> int:
        """The batch's support is the population."""
        return batch_support
