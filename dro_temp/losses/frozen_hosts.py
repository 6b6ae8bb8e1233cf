r"""Losses that teach a temperature predictor over a frozen model, and treat rows that it has right differently.

A row is right where no outcome scores above its target. That does not depend on its temperature, but a pass that
streams has to look: both losses read the row's largest score and its target's. With $p = \mathrm{softmax}(s / \tau)$:

    LikelihoodLoss            -log p_t                                            every row alike
    SelectiveSmoothingLoss    right: -(1 - a) log p_t   wrong: -a mean_j log p_j  wrong rows towards uniform
    ProbabilityWeightedLoss   1 - p_t, right rows times a share                   rows that are hopeless, or easy, less
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import final

import torch

from dro_temp import functional as F
from dro_temp._checks import check_number
from dro_temp._tensors import log_of_size
from dro_temp._typing import PerRow, RowMask
from dro_temp.functional.kl import IMPOSSIBLE
from dro_temp.functional.statistics import Statistic, impossible
from dro_temp.interfaces import LinearScores, Rows
from dro_temp.kernels.dispatch import BackendOption
from dro_temp.losses.log_mean_exp import LogMeanExpLoss


class _OfRightRows(LogMeanExpLoss):
    """A loss of the target's log-probability and of statistics; see `from_statistics`."""

    row_by_row = False

    @final
    def from_log_mean_exp(self, rows: Rows, log_g: PerRow, tau: PerRow) -> PerRow:
        """Not called."""
        raise AssertionError("expected from_statistics to be called")

    @abstractmethod
    def from_statistics(
        self, rows: Rows, log_g: PerRow, tau: PerRow, statistics: Mapping[str, PerRow]
    ) -> PerRow:
        """One value per row."""


def _surprise(rows: Rows, log_g: PerRow) -> PerRow:
    """Minus the log-probability of the target among all columns."""
    log_sum = log_g + log_of_size(rows.support_size, log_g)
    return log_sum if rows.target_in_support else torch.logaddexp(log_sum, torch.zeros_like(log_sum))


def _is_right(statistics: Mapping[str, PerRow]) -> RowMask:
    """Whether no outcome scores above the target."""
    return statistics["max"] <= statistics["target_score"]


def _mean_margin(rows: Rows) -> PerRow:
    """Mean margin over all columns, with gradient; outcomes that cannot happen count where scores are products."""
    scores, target = rows.scores, rows.target.long()
    if isinstance(scores, LinearScores):
        assert scores.transform is None
        direction = scores.keys.mean(0) - scores.keys[target]
        margin = (scores.queries * direction).sum(1, dtype=scores.dtype)
        if scores.bias is not None:
            bias = scores.bias.clamp(min=IMPOSSIBLE)
            margin = margin + (bias.mean() - bias[target])
        return margin
    matrix = rows.dense_scores
    out = impossible(matrix)
    h = F.margins(matrix, target)
    return h.mean(1) if out is None else h.masked_fill(out, 0.0).sum(1) / (~out).sum(1).clamp(min=1)


def _check_share(name: str, share: float, usual: float) -> float:
    check_number(name, share, usual)
    if not 0.0 <= share <= 1.0:
        raise ValueError(
            f"expected {name} in [0, 1], received {name}={share}. Pass {name}={usual}, as published."
        )
    return float(share)


class SelectiveSmoothingLoss(_OfRightRows):
    r"""Likelihood where the model is right, and the uniform distribution where it is wrong: for calibration.

    $$\ell_i = \begin{cases} -(1-\alpha) \log p_{i t_i} & \text{if } s_{i t_i} = \max_j s_{ij} \\
    -\alpha \frac1m \sum_j \log p_{ij} & \text{otherwise,} \end{cases} \qquad p_i = \mathrm{softmax}(s_i / \tau_i).$$

    The likelihood of a wrong row may be raised by lowering its temperature, which its confidence does not deserve; the
    second case raises it instead. It is no proper scoring rule: at its optimum a row that is right with probability q
    is not as confident as q says. alpha weighs the two cases, and the best one is found on validation data.

    For a frozen model, or as `Objective(tau_loss=...)`. Outcomes that cannot happen (masked scores) are left out of the
    mean. Scores that learn and are transformed (a soft cap) need the score matrix.

    Args:
        alpha: weight of rows that are wrong, in [0, 1].
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Raises:
        TypeError: alpha is not a number.
        ValueError: alpha outside [0, 1].

    Example:
        >>> import torch, dro_temp as dt
        >>> scores = torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0]])
        >>> rows = dt.Rows(scores, torch.tensor([0, 1]))  # right, wrong
        >>> log_p = (scores / 1.5).log_softmax(1)
        >>> dt.losses.SelectiveSmoothingLoss(0.25)(rows, 1.5), -0.75 * log_p[0, 0], -0.25 * log_p[1].mean()
        (tensor([0.4312, 0.3104]), tensor(0.4312), tensor(0.3104))

    Source: arXiv 2409.19817 (ATS), section 3.2, with its alpha of 0.5.
    """

    reads: tuple[Statistic, ...] = ("max", "mean", "target_score")

    def __init__(self, alpha: float = 0.5, *, backend: BackendOption = "auto") -> None:
        super().__init__(backend=backend)
        self.alpha = _check_share("alpha", alpha, 0.5)

    def from_statistics(
        self, rows: Rows, log_g: PerRow, tau: PerRow, statistics: Mapping[str, PerRow]
    ) -> PerRow:
        """Either case, by whether the row is right."""
        surprise = _surprise(rows, log_g)
        margin = statistics["mean"] - statistics["target_score"]
        if not rows.target_in_support:  # the target's own margin, zero, is one more term
            margin = margin * (rows.support_size / (rows.support_size + 1))
        if rows.scores.requires_grad and torch.is_grad_enabled():
            same = _mean_margin(rows)
            margin = margin + (same - same.detach())
        right = (1.0 - self.alpha) * surprise
        return torch.where(_is_right(statistics), right, self.alpha * (surprise - margin / tau))

    def extra_repr(self) -> str:
        """The weight of wrong rows."""
        return f"alpha={self.alpha}"


class ProbabilityWeightedLoss(_OfRightRows):
    r"""How likely another token than the target is, rows that the model has right less: for decoding.

    $$\ell_i = w_i (1 - p_{i t_i}), \qquad w_i = \begin{cases} 1 - d & \text{if } s_{i t_i} = \max_j s_{ij} \\
    1 & \text{otherwise.} \end{cases}$$

    Its gradient is that of the published loss, likelihood weighted by the target's own probability, $-[p_t] \log p_t$
    with [ ] constant. Rows whose target the model finds unlikely, and which no temperature can save, weigh nearly
    nothing; most of the easy ones are dropped. What remains are rows where the temperature decides. Temperatures are
    lower than those of `LikelihoodLoss`: they fit the text less and pick the likely token more.

    The published training drops a right row with probability d at every step. Here its weight is 1 - d: the mean over
    such draws, with less noise; a mean over all rows instead of those kept is one factor for all.

    Args:
        drop: share d of rows that are right that is dropped, in [0, 1].
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Raises:
        TypeError: drop is not a number.
        ValueError: drop outside [0, 1].

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0]]), torch.tensor([0, 1]))  # right, wrong
        >>> p = (rows.scores / 1.5).softmax(1)[[0, 1], [0, 1]]
        >>> dt.losses.ProbabilityWeightedLoss(drop=0.6)(rows, 1.5), (1 - p) * torch.tensor([0.4, 1.0])
        (tensor([0.1749, 0.8517]), tensor([0.1749, 0.8517]))

    Source: arXiv 2510.26697 (AutoDeco), section 3, and its released training; arXiv 2508.05629 (DFT) for the weight.
    """

    reads: tuple[Statistic, ...] = ("max", "target_score")

    def __init__(self, drop: float = 0.6, *, backend: BackendOption = "auto") -> None:
        super().__init__(backend=backend)
        self.drop = _check_share("drop", drop, 0.6)

    def from_statistics(
        self, rows: Rows, log_g: PerRow, tau: PerRow, statistics: Mapping[str, PerRow]
    ) -> PerRow:
        """Weighted probability of the other outcomes."""
        surprise = _surprise(rows, log_g)
        kept = 1.0 - self.drop * _is_right(statistics).to(surprise.dtype)
        return -kept * torch.expm1(-surprise)

    def extra_repr(self) -> str:
        """The share that is dropped."""
        return f"drop={self.drop}"
