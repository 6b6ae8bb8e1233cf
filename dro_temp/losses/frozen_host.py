"""Losses that teach temperatures of a frozen host: the label's likelihood, weighted by where the label stands."""

from abc import abstractmethod

import torch

from dro_temp._checks import check_within
from dro_temp._typing import PerRow
from dro_temp.functional.statistics import IMPOSSIBLE_BELOW, LabelStanding
from dro_temp.interfaces import LinearScores, Rows
from dro_temp.kernels.dispatch import BackendOption
from dro_temp.losses.likelihood import LikelihoodLoss


class FrozenHostLoss(LikelihoodLoss):
    r"""$w_i \cdot (-\log \mathrm{softmax}(s_i / \tau_i)_{t_i}) + c_i / \tau_i$ with constants $w_i$, $c_i$ of each row.

    The constants are functions of where the host's scores put the label at temperature 1. So the loss has a gradient
    with respect to temperatures alone, and refuses scores that require one: they would get none, and the host would
    silently not train. A row whose label cannot happen (a score 9,000 below the best) counts zero. It streams in one
    pass, as `LikelihoodLoss` does.

    A subclass implements `coefficients`.

    Args:
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Raises:
        ValueError: at a call, scores that require gradient, or target distributions.
    """

    reads_label = True

    @abstractmethod
    def coefficients(self, label: LabelStanding) -> tuple[PerRow, PerRow]:
        """The constants w and c of each row, without gradient."""

    def check_rows(self, rows: Rows) -> None:
        """Raise unless there is one label per row, of a host that does not learn."""
        name, scores = type(self).__name__, rows.scores
        if rows.target_distribution is not None:
            raise ValueError(
                f"expected one target per row for {name}, received target distributions: none of them is the label. "
                "Leave target_distribution out, or use LikelihoodLoss()."
            )
        parts = (scores.queries, scores.keys, scores.bias) if isinstance(scores, LinearScores) else (scores,)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in parts):
            raise ValueError(
                f"expected scores of a frozen host, received scores that require gradient: {name} teaches "
                "temperatures alone. Pass it as Objective(..., tau_loss=...) beside a loss of the host, freeze the "
                "host (frozen=True), or pass rows.detached()."
            )

    def from_label(self, rows: Rows, log_g: PerRow, tau: PerRow, label: LabelStanding) -> PerRow:
        """The weighted likelihood, and the term over tau."""
        w, c = self.coefficients(label)
        # A row whose label cannot happen says nothing about its temperature, and its numbers are infinite, or huge ones
        # that cancel.
        possible = label.gap < IMPOSSIBLE_BELOW
        w, c = w.masked_fill(~possible, 0.0), c.masked_fill(~possible, 0.0)
        surprise = self.from_log_mean_exp(rows, torch.where(possible, log_g, 0.0), tau)
        return w * surprise + c / tau


class SelectiveSmoothingLoss(FrozenHostLoss):
    r"""Cross-entropy where the host's top outcome is the label, and with a uniform target where it is not.

    $$\ell_i(\tau_i) = \begin{cases}
    -(1 - \alpha) \log p_{i t_i} & t_i = \arg\max_j s_{ij} \\
    -\frac{\alpha}{m} \sum_j \log p_{ij} & \text{else}
    \end{cases}, \qquad p_i = \mathrm{softmax}(s_i / \tau_i)$$

    A row that is wrong asks for a temperature as high as the bound allows, one that is right for a low one: what a
    network can do is to tell them apart, so it lowers the confidence of tokens that are likely to be wrong. Use it for
    the calibration of a chat model's top answer; it does not aim at likelihood, and its temperatures are as high as
    alpha makes them.

    Args:
        alpha: weight of the rows that are wrong, 0 to 1; the others have 1 - alpha.
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Raises:
        ValueError: alpha outside [0, 1]; at a call, scores that require gradient, or target distributions.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0]]), torch.tensor([0, 1]))
        >>> log_p = rows.scores.log_softmax(1)
        >>> dt.SelectiveSmoothingLoss(alpha=0.25)(rows, 1.0), -0.75 * log_p[0, 0], -0.25 * log_p[1].mean()
        (tensor([0.3057, 0.3519]), tensor(0.3057), tensor(0.3519))

    Source: arXiv 2409.19817 (ATS), section 3, with its alpha of 0.5, a mean over all tokens. Its released code
    weights the mean of either group by the other group's share of the batch instead. A tie for the top counts as right
    here, and outcomes that cannot happen (logits of -inf) are left out of the uniform target.
    """

    def __init__(self, alpha: float = 0.5, *, backend: BackendOption = "auto") -> None:
        super().__init__(backend=backend)
        check_within("alpha", alpha, 0.0, 1.0)
        self.alpha = float(alpha)

    def coefficients(self, label: LabelStanding) -> tuple[PerRow, PerRow]:
        r"""Where it is wrong, $-\frac1m \sum_j \log p_j = -\log p_t + (s_t - \bar s) / \tau$."""
        right = label.gap <= 0
        w = torch.full_like(label.gap, self.alpha).masked_fill(right, 1.0 - self.alpha)
        return w, (-self.alpha * label.mean_margin).masked_fill(right, 0.0)

    def extra_repr(self) -> str:
        """Alpha."""
        return f"alpha={self.alpha}"


class SelfWeightedLoss(FrozenHostLoss):
    r"""$-a_i\, q_i \log \mathrm{softmax}(s_i / \tau_i)_{t_i}$ with the host's own probability $q_i$ of the label.

    $q_i = \mathrm{softmax}(s_i)_{t_i}$ has no gradient. $a_i$ is `easy_weight` where the label is the host's top
    outcome, else 1. Tokens that the host finds unlikely count little, so temperatures stay low; easy tokens, which
    only ask for lower ones, count less than they are many. Use it for temperatures to sample with: as a description of
    how likely the text is, they are too low.

    Args:
        easy_weight: a, 0 to 1.
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Raises:
        ValueError: easy_weight outside [0, 1]; at a call, scores that require gradient, or target distributions.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([2]))
        >>> q, p = rows.scores.softmax(1)[0, 2], (rows.scores / 0.5).softmax(1)[0, 2]
        >>> dt.SelfWeightedLoss()(rows, 0.5), -q * p.log()
        (tensor([0.5244]), tensor(0.5244))

    Source: arXiv 2510.26697 (AutoDeco), its temperature head. It drops 60 % of the easy tokens at random, and takes
    the mean over those that are left; here each counts 0.4 times, the expectation of that sum, without the noise, and
    the mean is over all.
    """

    def __init__(self, easy_weight: float = 0.4, *, backend: BackendOption = "auto") -> None:
        super().__init__(backend=backend)
        check_within("easy_weight", easy_weight, 0.0, 1.0)
        self.easy_weight = float(easy_weight)

    def coefficients(self, label: LabelStanding) -> tuple[PerRow, PerRow]:
        """The probability, less where it is the highest."""
        q = label.log_probability.exp()
        return torch.where(label.gap <= 0, self.easy_weight * q, q), torch.zeros_like(q)

    def extra_repr(self) -> str:
        """The weight of easy rows."""
        return f"easy_weight={self.easy_weight}"
