"""Risks that are a mean under weights known in closed form, and the best case in place of any worst one."""

from dro_temp import functional as F
from dro_temp._checks import check_kind, check_radius, check_share
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.interfaces import SampleRisk
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


class CVaRRisk(StandaloneRisk):
    r"""$\min_\eta\, \eta + \frac1\alpha \mathbb{E}_i\, (l_i - \eta)_+$: the mean of the worst share alpha of samples.

    Exact by sorting; of the sample on the edge only the part counts that fills the share up. All other samples get no
    gradient: with small alpha most of the work on a batch is wasted.

    Args:
        alpha: share of samples, in (0, 1]. 1 is the mean, 1/n and below the maximum.

    Raises:
        TypeError: alpha is not a number.
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


class ChiSquareRisk(StandaloneRisk):
    r"""$\min_\eta\, \eta + \sqrt{1 + 2\rho} \left(\mathbb{E}_i\, (l_i - \eta)_+^2\right)^{1/2}$.

    That is $\max_p \mathbb{E}_p l$ over $\chi^2(p, U) = \frac{1}{2n} \sum_i (n p_i - 1)^2 \le \rho$. While no sample's
    weight reaches zero it is the mean plus $\sqrt{2\rho}$ standard deviations. Weights grow with the loss itself,
    $p_i \propto (l_i - \eta)_+$, not with its exponential: it is calmer than `KLRisk`, and samples below eta get no
    gradient.

    Args:
        rho: radius of the ball, >= 0. 0 is the mean; from (n - 1)/2 on it is the maximum.

    Raises:
        TypeError: rho is not a number.
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


class OptimisticRisk(StandaloneRisk):
    r"""$-R(-l)$: the adversary of the risk R turned into an ally, for data some of which are wrong.

    Around `CVaRRisk(alpha)` it is the mean of the smallest share alpha of the losses, the trimmed loss; around
    `KLRisk` and `ChiSquareRisk` the best case within their ball. `TiltedRisk(t)` becomes `TiltedRisk(-t)`.

    Its weights are those of the wrapped risk for the losses with their sign changed.

    Args:
        risk: the risk whose sign is reversed.

    Raises:
        TypeError: `risk` is not a SampleRisk.
        ValueError: it knows samples by their numbers.

    Example:
        >>> import torch, dro_temp as dt
        >>> dt.OptimisticRisk(dt.CVaRRisk(0.75))(torch.tensor([0.1, 0.2, 0.3, 9.0]))
        tensor(0.2000)

    Source: arXiv 1810.11874 (Shen and Sanghavi: the trimmed loss).
    """

    def __init__(self, risk: SampleRisk) -> None:
        super().__init__()
        check_kind("risk", risk, SampleRisk, "Write OptimisticRisk(CVaRRisk(0.9)), say.")
        if risk.needs_index:
            raise ValueError(
                f"expected a risk without sample numbers, received {type(risk).__name__}. Put it outside: "
                "RecordedRisk(OptimisticRisk(risk), len(dataset))."
            )
        self.risk = risk
        self.needs_groups = risk.needs_groups

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The wrapped risk of the negative losses, negative."""
        return -self.risk.value(-losses, weight, group)
