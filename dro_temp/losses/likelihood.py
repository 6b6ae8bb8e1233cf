"""Minus log-likelihoods: cross-entropy over labels, and over the columns of a batch."""

from collections.abc import Collection
from dataclasses import replace

import torch

from dro_temp._checks import check_positive
from dro_temp._tensors import log_of_size
from dro_temp._typing import PerRow
from dro_temp.functional.statistics import Statistic
from dro_temp.interfaces import BackendChoice, LossOutput, RobustLoss, Rows, TemperaturePredictor
from dro_temp.interfaces.predictor import check_reads_nothing
from dro_temp.kernels.dispatch import BackendOption
from dro_temp.losses.log_mean_exp import LogMeanExpLoss, Taus


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
        same = rows.group is None
        log_sum = log_g + (log_of_size(rows.support_size, log_g) if same else rows.log_support_sizes(log_g))
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


class ScaledLikelihoodLoss(RobustLoss):
    r"""`LikelihoodLoss` at the temperatures $a\,(\tau_i / \tau)^{1/p}$, with one learned scale a.

    A `tau_loss` for temperatures whose level is not the likelihood's to choose. A host that is trained by another loss,
    `EntropicRiskLoss` say, needs temperatures of its own level, at which no softmax fits the labels. The likelihood
    here chooses its level by a, and teaches which rows are to have higher temperatures than others. With a
    `LevelTemperature` of the same tau and power the temperatures inside are $a\,e^{z_i - \bar z}$.

    Args:
        scale: predicts a, and reads nothing of a row: `LearnableTemperature(0.07)`. It is trained in the group "loss".
        tau: the level of the temperatures that it is given, > 0.
        power: p, > 0.
        backend: how scores that are products are computed, see `LogMeanExpLoss`. Temperatures of a predictor that reads
            scores are computed from the score matrix.

    Raises:
        TypeError: `scale` is not a TemperaturePredictor.
        ValueError: a scale that reads rows, or a number that is not positive.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([2]))
        >>> loss = dt.losses.ScaledLikelihoodLoss(dt.ConstantTemperature(1.0), tau=0.2, power=0.5)
        >>> loss(rows, 0.4), dt.LikelihoodLoss()(rows, (0.4 / 0.2) ** 2)
        (tensor([1.1193]), tensor([1.1193]))

    Source: this library.
    """

    def __init__(
        self,
        scale: TemperaturePredictor,
        *,
        tau: float,
        power: float = 1.0,
        backend: BackendOption = "auto",
    ) -> None:
        super().__init__()
        check_reads_nothing("scale", scale, "Pass LearnableTemperature(0.07).")
        check_positive("tau", tau)
        check_positive("power", power)
        self.scale, self.tau, self.power = scale, float(tau), float(power)
        self.loss = LikelihoodLoss(backend=backend)

    def choose_backend(self, rows: Rows) -> BackendChoice:
        """That of the likelihood."""
        return self.loss.choose_backend(rows)

    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """From the score matrix."""
        return self.loss.values(rows, self._scaled(tau))

    def _streamed(
        self,
        rows: Rows,
        tau: Taus,
        statistics: Collection[Statistic],
        differentiable: bool,
        backend: BackendChoice,
    ) -> LossOutput:
        tau = tau.predict(rows) if isinstance(tau, TemperaturePredictor) else tau
        output = self.loss._streamed(rows, self._scaled(tau), (), False, backend)
        if statistics:  # those of s / tau, which another pass computes
            with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
                at_tau = self.loss._streamed(rows, tau, statistics, differentiable, backend)
            output = replace(output, statistics=at_tau.statistics)
        return replace(output, tau=tau)

    def _scaled(self, tau: PerRow) -> PerRow:
        scale: PerRow = self.scale(shape=tau.shape)
        return scale.to(tau.dtype) * (tau / self.tau).pow(1.0 / self.power)

    def extra_repr(self) -> str:
        """Level and power."""
        return f"tau={self.tau}, power={self.power}"
