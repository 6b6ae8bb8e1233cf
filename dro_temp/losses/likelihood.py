"""Minus log-likelihoods: cross-entropy over labels, over the columns of a batch, and of every pair by itself."""

import torch
from torch import Tensor, nn

from dro_temp._checks import check_number
from dro_temp._tensors import log_of_size
from dro_temp._typing import PerRow
from dro_temp.functional.kl import IMPOSSIBLE
from dro_temp.interfaces import RobustLoss, Rows
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


class SigmoidLoss(RobustLoss):
    r"""$-\sum_j \log \sigma\left(y_{ij} (s_{ij} / \tau_i + b)\right)$, $y_{ij} = 1$ at the target and $-1$ elsewhere.

    Every pair is a classification of its own: no row is normalised. The mean over rows is SigLIP's sum over all
    pairs divided by the number of rows. It reads the scores themselves, not margins: adding a constant to every score
    changes the value; the learnable bias b absorbs it. All columns count, whatever `target_in_support` says.

    Materialises the score matrix: this loss does not stream. A row without any other column (a batch of one)
    contributes zero, as in every loss here.

    Args:
        bias_init: where b starts. Most pairs are negatives; -10 makes the first loss small.

    Raises:
        TypeError: bias_init is not a number.
        ValueError: bias_init is not finite.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), target_in_support=False)
        >>> dt.SigmoidLoss(bias_init=0.0)(rows, 1.0)   # log(1 + e^-2) + log 2
        tensor([0.8201], grad_fn=<MaskedFillBackward0>)

    Source: arXiv 2303.15343 (SigLIP), algorithm 1.
    """

    def __init__(self, bias_init: float = -10.0) -> None:
        super().__init__()
        check_number("bias_init", bias_init, -10.0)
        self.bias: Tensor = nn.Parameter(torch.tensor([float(bias_init)]))  # [1]: FSDP shards no scalars

    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """Minus the log-likelihood of all pairs of a row."""
        scores, target = rows.dense_scores, rows.target.long()[:, None]
        # (-inf) / tau would make the gradient of tau NaN: outcomes that cannot happen get a finite score. A target that
        # cannot happen keeps its infinite value.
        finite = scores.clamp(min=IMPOSSIBLE).scatter(1, target, scores.gather(1, target))
        logits = finite / tau[:, None] + self.bias
        if rows.target_distribution is not None:
            q = rows.target_distribution.to(logits.dtype)
            return nn.functional.binary_cross_entropy_with_logits(logits, q, reduction="none").sum(1)
        # The sign changes at the target alone: adding the difference afterwards would lose digits.
        signed = (-logits).scatter(1, target, logits.gather(1, target))
        return -nn.functional.logsigmoid(signed).sum(1)
