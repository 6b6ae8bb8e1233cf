"""The log of the inner mean, without the factor tau."""

from dro_temp import functional as F
from dro_temp._checks import check_kind
from dro_temp._typing import PerRow
from dro_temp.estimators import Exact
from dro_temp.interfaces import Estimator, Rows
from dro_temp.kernels.dispatch import BackendOption
from dro_temp.losses.log_mean_exp import LogMeanExpLoss


class EntropicRiskLoss(LogMeanExpLoss):
    r"""$\log \mathbb{E}_j\, e^{h_{ij}/\tau_i}$ over each row's support: the entropic risk of the scaled margins.

    The global contrastive loss of FastCLIP v0 and the objective of SCENT. Against its neighbours: `KLRobustLoss`
    multiplies it by tau, which removes the factor 1/tau from the gradient of the scores; `InfoNCELoss` adds the
    target to the sum and treats the batch as the whole population.

    With an estimator the value is its $\log u$ and the gradient the compositional one, $\nabla g / u$, to scores and
    temperatures alike.

    Args:
        estimator: estimate of the inner mean: `Exact()` (the default), or, for pairs, `LogMovingAverage` or `Scent`.
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Raises:
        TypeError: `estimator` is not an Estimator.
        ValueError: an estimator needs sample numbers, and there are none.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), target_in_support=False)
        >>> dt.EntropicRiskLoss()(rows, 0.5)
        tensor([-4.])

    Source: arXiv 2407.01445 (FastCLIP), v0; arXiv 2602.02877 (SCENT), equation 1.
    """

    def __init__(self, *, estimator: Estimator | None = None, backend: BackendOption = "auto") -> None:
        super().__init__(backend=backend)
        estimator = Exact() if estimator is None else estimator
        check_kind("estimator", estimator, Estimator, "Pass LogMovingAverage(len(dataset)), or leave it out.")
        self.estimator = estimator
        self.row_by_row = estimator.row_by_row

    def from_log_mean_exp(self, rows: Rows, log_g: PerRow, tau: PerRow) -> PerRow:
        """The estimated log-mean, with the compositional gradient."""
        return F.compositional_log_mean(log_g, self.estimator.propose(rows.index, log_g, rows.valid))
