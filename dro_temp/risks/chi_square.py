"""The worst case within a chi-square ball around the data."""

from dro_temp import functional as F
from dro_temp._checks import check_radius
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.risks.standalone import StandaloneRisk


class ChiSquareRisk(StandaloneRisk):
    r"""$\min_\eta\, \eta + \sqrt{1 + 2\rho} \left(\mathbb{E}_i\, (l_i - \eta)_+^2\right)^{1/2}$.

    That is $\max_p \mathbb{E}_p l$ over $\chi^2(p, U) = \frac{1}{2n} \sum_i (n p_i - 1)^2 \le \rho$. While no sample's
    weight reaches zero it is the mean plus $\sqrt{2\rho}$ standard deviations. Weights grow with the loss itself,
    $p_i \propto (l_i - \eta)_+$, not with its exponential: it is calmer than `KLRisk`, and samples below eta get no
    gradient.

    Args:
        rho: radius of the ball, >= 0. 0 is the mean; from (n - 1)/2 on it is the maximum.

    Raises:
        TypeError: rho is no number.
        ValueError: rho is negative or not finite.

    Example:
        >>> import torch, dro_temp as dt
        >>> losses = torch.tensor([0.0, 1.0, 2.0])
        >>> dt.ChiSquareRisk(0.125)(losses), losses.mean() + 0.5 * losses.std(correction=0)
        (tensor(1.4082), tensor(1.4082))

    Source: arXiv 1610.03425 (Duchi, Glynn, Namkoong); arXiv 1806.08010 (Hashimoto and others).
    """

    def __init__(self, rho: float) -> None:
        super().__init__()
        check_radius(rho)
        self.rho = float(rho)

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The mean under the worst weights; its gradient is those weights (the envelope theorem)."""
        return F.mean_under(F.chi_square_weights(losses, weight, rho=self.rho), losses)
