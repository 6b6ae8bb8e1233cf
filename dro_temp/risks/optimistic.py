"""The best case in place of the worst."""

from dro_temp._checks import check_kind
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.interfaces import SampleRisk
from dro_temp.risks.standalone import StandaloneRisk


class OptimisticRisk(StandaloneRisk):
    r"""$-R(-l)$: the adversary of the risk R turned into an ally, for data some of which are wrong.

    Around `CVaRRisk(alpha)` it is the mean of the smallest share alpha of the losses, the trimmed loss; around
    `KLRisk` and `ChiSquareRisk` the best case within their ball. `TiltedRisk(t)` becomes `TiltedRisk(-t)`.

    Its weights are those of the wrapped risk for the losses with their sign changed.

    Args:
        risk: what is turned round.

    Raises:
        TypeError: it is no SampleRisk.

    Example:
        >>> import torch, dro_temp as dt
        >>> dt.OptimisticRisk(dt.CVaRRisk(0.75))(torch.tensor([0.1, 0.2, 0.3, 9.0]))
        tensor(0.2000)

    Source: arXiv 1810.11874 (Shen and Sanghavi: the trimmed loss).
    """

    def __init__(self, risk: SampleRisk) -> None:
        super().__init__()
        check_kind("risk", risk, SampleRisk, "Write OptimisticRisk(CVaRRisk(0.9)), say.")
        self.risk = risk
        self.needs_groups = risk.needs_groups

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The wrapped risk of the negative losses, negative."""
        return -self.risk.value(-losses, weight, group)
