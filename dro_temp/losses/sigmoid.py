"""The sigmoid loss of pairs."""

import torch
from torch import Tensor, nn

from dro_temp._checks import check_number
from dro_temp._typing import PerRow
from dro_temp.functional import kl as F
from dro_temp.interfaces import RobustLoss, Rows


class SigmoidLoss(RobustLoss):
    r"""$-\sum_j \log \sigma\left(y_{ij} (s_{ij} / \tau_i + b)\right)$, $y_{ij} = 1$ at the target and $-1$ elsewhere.

    Every pair is a classification of its own: no row is normalised. The mean over rows is SigLIP's sum over all
    pairs divided by the number of rows. It reads the scores themselves, not margins: a constant in all scores
    matters, and the bias b, a parameter, takes it up. All columns count, whatever `target_in_support` says.

    Materialises the score matrix: this loss does not stream. A row without any other column (a batch of one) counts
    zero, as in every loss here.

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
        finite = scores.clamp(min=F.IMPOSSIBLE).scatter(1, target, scores.gather(1, target))
        logits = finite / tau[:, None] + self.bias
        if rows.target_distribution is not None:
            q = rows.target_distribution.to(logits.dtype)
            return nn.functional.binary_cross_entropy_with_logits(logits, q, reduction="none").sum(1)
        # The sign changes at the target alone: adding the difference afterwards would lose digits.
        signed = (-logits).scatter(1, target, logits.gather(1, target))
        return -nn.functional.logsigmoid(signed).sum(1)
