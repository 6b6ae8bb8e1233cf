"""The mean of the worst share of samples."""

from dro_temp import functional as F
from dro_temp._checks import check_share
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.risks.standalone import StandaloneRisk


class CVaRRisk(StandaloneRisk):
    r"""$\min_\eta\, \eta + \frac1\alpha \mathbb{E}_i\, (l_i - \eta)_+$: the mean of the worst share alpha of samples.

    Exact by sorting; of the sample on the edge only the part counts that fills the share up. All other samples get no
    gradient: with small alpha most of a batch is computed in vain.

    Args:
        alpha: share of samples, in (0, 1]. 1 is the mean, 1/n and below the maximum.

    Raises:
        TypeError: alpha is no number.
        ValueError: alpha is outside (0, 1].

    Example:
        >>> import torch, dro_temp as dt
        >>> dt.CVaRRisk(0.5)(torch.tensor([4.0, 1.0, 3.0, 0.0]))
        tensor(3.5000)

    Source: Rockafellar and Uryasev, Optimization of conditional value-at-risk, 2000; arXiv 2010.05893.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        check_share("alpha", alpha)
        self.alpha = float(alpha)

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The mean under the worst weights; its gradient is those weights (the envelope theorem)."""
        return F.mean_under(F.cvar_weights(losses, weight, alpha=self.alpha), losses)
