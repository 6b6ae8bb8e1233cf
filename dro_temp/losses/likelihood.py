"""Minus log-likelihoods: cross-entropy over labels, and over the columns of a batch."""

import torch

from dro_temp._tensors import log_of_size
from dro_temp._typing import PerRow
from dro_temp.interfaces import Rows
from dro_temp.losses.log_mean_exp import LogMeanExpLoss


class LikelihoodLoss(LogMeanExpLoss):
    r"""$-\log \mathrm{softmax}(s_i / \tau_i)_{t_i} = \log \sum_j e^{h_{ij}/\tau_i}$: how unlikely the label is.

    Which loss to train a temperature predictor with:

    - `KLRobustLoss` makes a model robust. Over a *frozen* one its gradient, $d\ell/d\tau = \rho - \log m + H$, does
      not depend on the label: the best temperature gives every row the same entropy $\log m - \rho$, whether the
      model is right there or wrong. Closing the gap to that optimum may make likelihood and calibration worse.
    - `LikelihoodLoss` fits probabilities: it raises the temperature of a row that is wrong with confidence, and lowers
      that of one that is right. Train a predictor with it over a frozen model for perplexity and calibration; with one
      number for all rows that is temperature scaling.

    The values are those of `InfoNCELoss`, its name where columns are the other items of a batch. It is not scaled by
    tau: while a model is trained with it, tau also scales the model's gradient.

    Args:
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([2]))
        >>> dt.LikelihoodLoss()(rows, 2.0), torch.nn.functional.cross_entropy(rows.scores / 2.0, rows.target)
        (tensor([1.1803]), tensor(1.1803))

    Source: arXiv 2409.19817 (ATS), whose selective smoothing is left out; arXiv 1706.04599 (temperature scaling).
    """

    def is_affine(self, rows: Rows) -> bool:
        """True if the target is one of the outcomes."""
        return rows.target_in_support

    def from_log_mean_exp(self, rows: Rows, log_g: PerRow, tau: PerRow) -> PerRow:
        """Minus the log-probability of the target among all columns."""
        log_sum = log_g + log_of_size(rows.support_size, log_g)
        # The target's own margin is zero; a support without it gets it back.
        return log_sum if rows.target_in_support else torch.logaddexp(log_sum, torch.zeros_like(log_sum))


class InfoNCELoss(LikelihoodLoss):
    r"""Cross-entropy of the target among all columns, $\log \sum_j e^{h_j / \tau}$ with the target included.

    With one global learnable temperature this is CLIP's loss. Unlike the robust loss it is not scaled by tau,
    and it treats the sampled negatives as the whole population.

    Args:
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        >>> dt.InfoNCELoss()(rows, 1.0)
        tensor([0.1269])

    Source: arXiv 1807.03748 (CPC); arXiv 2103.00020 (CLIP).
    """
