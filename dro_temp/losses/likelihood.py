"""Fitting temperatures to labels."""

from dro_temp._typing import PerRow
from dro_temp.interfaces import Rows
from dro_temp.losses._log_loss import log_loss
from dro_temp.losses.log_mean_exp import LogMeanExpLoss


class LikelihoodLoss(LogMeanExpLoss):
    r"""$-\log \mathrm{softmax}(s_i / \tau_i)_{t_i} = \log \sum_j e^{h_{ij}/\tau_i}$: how unlikely the label is.

    Which loss for a temperature predictor serves what:

    - `KLRobustLoss` makes a model robust. Over a *frozen* one its gradient, $d\ell/d\tau = \rho - \log m + H$, does
      not depend on the label: the best temperature gives every row the same entropy $\log m - \rho$, whether the
      model is right there or wrong. Closing the gap to that optimum may make likelihood and calibration worse.
    - `LikelihoodLoss` makes probabilities right: a row that is wrong with confidence is heated, one that is right
      is cooled. Train a predictor with it over a frozen model for perplexity and calibration; with one number for
      all rows that is temperature scaling.

    The values are those of `InfoNCELoss`, which is its name where columns are the other items of a batch. Not
    scaled by tau: while a model is trained with it, tau moves the size of the model's gradient as well.

    Args:
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([2]))
        >>> dt.LikelihoodLoss()(rows, 2.0), torch.nn.functional.cross_entropy(rows.scores / 2.0, rows.target)
        (tensor([1.1803]), tensor(1.1803))

    Source: arXiv 2409.19817 (ATS), whose selective smoothing is left out; arXiv 1706.04599 (temperature scaling).
    """

    def from_log_mean_exp(self, rows: Rows, log_g: PerRow, tau: PerRow) -> PerRow:
        """Minus the log-probability of the target."""
        return log_loss(rows, log_g)
