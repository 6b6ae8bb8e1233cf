"""The plain mean."""

from dro_temp import functional as F
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.risks.standalone import StandaloneRisk


class MeanRisk(StandaloneRisk):
    r"""$\sum_i w_i l_i / \sum_i w_i$: every sample counts as it comes.

    The baseline of the others, and what they are where their parameter asks for nothing.

    Example:
        >>> import torch, dro_temp as dt
        >>> dt.risks.MeanRisk()(torch.tensor([1.0, 2.0, 6.0]))
        tensor(3.)
    """

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The weighted mean."""
        return F.mean_under(F.shares(losses, weight), losses)
