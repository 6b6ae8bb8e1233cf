"""The robust loss of KL-constrained distributionally robust optimisation, and its log-mean by itself."""

import math
from typing import Any

import torch
from torch import Tensor

from dro_temp import _faults, distributed
from dro_temp import functional as F
from dro_temp._autograd import refuse_second_derivative
from dro_temp._checks import check_feasible, check_kind, check_radius, values_can_be_read
from dro_temp._typing import PerRow
from dro_temp.estimators import Exact
from dro_temp.functional.kl import LARGEST_RATIO
from dro_temp.interfaces import Estimator, Rows
from dro_temp.kernels.dispatch import BackendOption
from dro_temp.losses.log_mean_exp import LogMeanExpLoss


class EstimatedLoss(LogMeanExpLoss):
    """A loss of the log of the inner mean as estimated, by `Exact()` for None."""

    def __init__(self, *, estimator: Estimator | None = None, backend: BackendOption = "auto") -> None:
        super().__init__(backend=backend)
        estimator = Exact() if estimator is None else estimator
        check_kind("estimator", estimator, Estimator, "Pass LogMovingAverage(len(dataset)), or leave it out.")
        self.estimator = estimator
        self.row_by_row = estimator.row_by_row

    def _compositional(self, rows: Rows, log_g: PerRow, log_u: PerRow | None) -> PerRow:
        """`F.compositional_log_mean`; on a GPU by one launch, in backward, in place of twenty."""
        if log_u is None:
            return log_g
        on_device = log_g.is_cuda or _faults.everywhere
        if on_device and log_g.dtype == log_u.dtype == torch.float32 and self._has_kernels(rows):
            log_mean: PerRow = _CompositionalLogMean.apply(log_g, log_u)  # type: ignore[no-untyped-call]
            return log_mean
        return F.compositional_log_mean(log_g, log_u)


class _CompositionalLogMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_g: PerRow, log_u: PerRow) -> PerRow:
        ctx.save_for_backward(log_g, log_u)
        return log_u.detach()

    @staticmethod
    def backward(ctx: Any, upstream: PerRow) -> tuple[Tensor, None]:
        from dro_temp.kernels.backends.triton import log_table

        refuse_second_derivative("an estimated mean on a GPU")
        log_g, log_u = ctx.saved_tensors
        largest = math.log(LARGEST_RATIO)
        return log_table.compositional_gradient(log_g, log_u, upstream, largest=largest), None


class KLRobustLoss(EstimatedLoss):
    r"""$F_i(\tau_i) = \tau_i \left(\log \mathbb{E}_j\, e^{h_{ij}/\tau_i} + \rho\right)$ over each row's support.

    The dual of the worst case of the margins over all distributions within KL distance rho of uniform. The
    temperature that minimises it is the one whose worst case lies on the ball's surface, KL(p||U) = rho: rows
    with many hard outcomes get a high temperature, rows with few a low one.

    Args:
        rho: radius of the KL ball in nats, 0 <= rho < log m. Near 0 the worst case is the mean, near log m the
            maximum.
        estimator: estimate of the inner mean. `Exact()` (the default) for tokens and classes; a
            `LogMovingAverage` for pairs, whose negatives are sampled.
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Raises:
        ValueError: rho < 0, or rho >= log m at a call, with groups that of the row with the fewest outcomes (on a
            device, the error comes late); an estimator needs sample numbers, and there are none.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.zeros(2, 8), torch.tensor([0, 5]))
        >>> dt.KLRobustLoss(rho=1.0)(rows, 0.5)
        tensor([0.5000, 0.5000])

    Source: arXiv 2404.04575, equations 6 to 8.
    """

    def __init__(
        self, rho: float, *, estimator: Estimator | None = None, backend: BackendOption = "auto"
    ) -> None:
        super().__init__(estimator=estimator, backend=backend)
        check_radius(rho)
        self.rho = float(rho)

    def check_rows(self, rows: Rows) -> None:
        """Raise if the KL ball contains every distribution over the outcomes."""
        size = rows.support_size
        if size > 0:
            lower = (
                "Lower rho: the estimator's m is that of the whole data set, and no larger batch raises it."
            )
            instead = None if self.row_by_row else lower
            check_feasible(self.rho, self.estimator.population(size), instead=instead)
            if rows.group is not None and self.estimator.population(1) < self.estimator.population(size):
                self._check_smallest_support(rows, instead)

    def _check_smallest_support(self, rows: Rows, instead: str | None) -> None:
        """Check the row with the fewest outcomes, of those that have some; on a device without waiting for it."""
        sizes, counted = rows.support_sizes, rows.valid
        if torch.compiler.is_compiling() or sizes is None:
            return
        smallest = torch.where(counted, sizes, rows.support_size)
        if distributed.world_size() > 1 and self.training and torch.is_grad_enabled():
            # One that raised alone would leave the others waiting.
            smallest, _ = distributed.gather_rows(smallest)
        if not len(smallest):
            return
        smallest = smallest.amin()

        def error(size: int) -> ValueError | None:
            try:
                advice = instead or "Lower rho below the log of that, or mix groups in larger batches."
                of_group = f"A row has {size} outcomes left beside its own group. {advice}"
                check_feasible(self.rho, self.estimator.population(size), instead=of_group)
            except ValueError as error:
                return error
            return None

        if values_can_be_read(sizes) and not _faults.everywhere:
            found = error(int(smallest))
            if found is not None:
                raise found
        elif sizes.is_cuda or _faults.everywhere:
            _faults.check(smallest, error)

    def is_affine(self, rows: Rows) -> bool:
        """True without an estimator."""
        return type(self.estimator) is Exact

    def from_log_mean_exp(self, rows: Rows, log_g: PerRow, tau: PerRow) -> PerRow:
        """The dual value, with the estimator's compositional gradient."""
        log_u = self.estimator.propose(rows.index, log_g, rows.valid)
        return tau * (self._compositional(rows, log_g, log_u) + self.rho)  # F.dual_value

    def extra_repr(self) -> str:
        """The radius."""
        return f"rho={self.rho}"


class EntropicRiskLoss(EstimatedLoss):
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

    def is_affine(self, rows: Rows) -> bool:
        """True without an estimator."""
        return type(self.estimator) is Exact

    def from_log_mean_exp(self, rows: Rows, log_g: PerRow, tau: PerRow) -> PerRow:
        """The estimated log-mean, with the compositional gradient."""
        return self._compositional(rows, log_g, self.estimator.propose(rows.index, log_g, rows.valid))
