"""The estimator of SCENT: a step size of its own for every row, from mirror descent on the dual variable."""

import math

from dro_temp import functional as F
from dro_temp._checks import check_real
from dro_temp._typing import PerRow
from dro_temp.estimators._table import LogTable


def _check_alpha(alpha: float) -> None:
    check_real("alpha", alpha, "Pass alpha=10.0, say.")
    if not math.isfinite(alpha):
        raise ValueError(
            f"expected a finite alpha, received alpha={alpha}. Pass 10.0, as the paper's contrastive runs do: it "
            "is the log of a step size, of either sign. LogMovingAverage(n, gamma=1.0) forgets the past."
        )


class Scent(LogTable):
    r"""$u_i \leftarrow (1-\gamma_i) u_i + \gamma_i g_i$ with $\gamma_i = \sigma(\alpha + \log u_i)$.

    That is a proximal mirror-descent step on $\nu_i = \log u_i$ in the geometry of $e^{-\nu}$, in place of one gamma
    for all: with $y = e^{-\nu}$, $y' = (y + e^\alpha)/(1 + e^\alpha g)$. Forward proposes, an optimizer step commits,
    duplicates are averaged, as in `LogMovingAverage`; it stands wherever that stands.

    A row's gradient weighs $g/u' \le 1/\gamma_i$, and $\gamma_i$ may be tiny: a row with $\log u_i$ far below
    $-\alpha$ moves by at most about $\alpha + \log g$ a visit, and its gradient is huge until it has caught up. Take
    alpha above $-\min_i \log u_i$; unit vectors at temperature tau have $\log u_i \ge -2/\tau$. The gradient takes the
    ratio for $10^9$ at most: at tau = 0.01 a jump of the margins would make it infinite otherwise.

    Args:
        num_samples: size of the data set; sample numbers run from 0 to num_samples - 1.
        alpha: log of the step size, any finite number. Large alpha is gamma near 1.
        on_host: True to keep the table in host memory, see `LogMovingAverage`.

    Raises:
        TypeError: alpha is no number.
        ValueError: num_samples < 1, or alpha not finite.
        IndexError: a sample number outside the table.

    Example:
        >>> import torch, dro_temp as dt
        >>> estimator, one = dt.Scent(100, alpha=0.0), torch.tensor([True])
        >>> for log_g in (0.0, 2.0):  # the first visit is taken whole, the second with gamma = sigmoid(0)
        ...     _ = estimator.propose(torch.tensor([7]), torch.tensor([log_g]), one)
        ...     estimator.commit()
        >>> round(estimator.log_u[7].item(), 4), round(math.log(0.5 * 1 + 0.5 * math.exp(2)), 4)
        (1.4338, 1.4338)

    Source: arXiv 2602.02877 (SCENT), algorithm 1.
    """

    def __init__(self, num_samples: int, *, alpha: float = 10.0, on_host: bool = False) -> None:
        super().__init__(num_samples, on_host=on_host)
        _check_alpha(alpha)
        self.alpha = float(alpha)

    def averaged(self, log_u: PerRow, log_g: PerRow) -> PerRow:
        """The mirror-descent step."""
        return F.log_mirror_average(log_u, log_g, self.alpha)

    def extra_repr(self) -> str:
        """Size of the table, and alpha."""
        return f"{self.num_samples}, alpha={self.alpha}"
