"""The contracts of a loss on rows, of what estimates its inner mean, and of a penalty on the rows of all views."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from dro_temp import _faults
from dro_temp._checks import (
    check_choice,
    check_kind,
    check_positive,
    check_several,
    extremes,
    first_wrong,
    values_can_be_read,
)
from dro_temp._loading import ShapeChecked
from dro_temp._pytree import pytree
from dro_temp._typing import PerRow, RowIndex, RowMask, Scalar
from dro_temp.functional.statistics import STATISTICS, Statistic, row_statistics
from dro_temp.interfaces.host import HostAdapter
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import Rows

#: How rows are computed: "reference" stores the score matrix and is ordinary autograd, the others stream over it.
BackendName: TypeAlias = Literal["reference", "torch", "cpu", "triton"]


@dataclass(frozen=True)
class BackendChoice:
    """The backend that a loss takes for some rows.

    Args:
        name: the backend.
        reason: why, as text.
    """

    name: BackendName
    reason: str


@pytree(static=("backend",))
@dataclass(frozen=True)
class LossOutput:
    """What a loss returns.

    Args:
        values: one value per row, with gradient; zero where a row does not count.
        tau: the temperatures; those of rows that do not count are undefined.
        backend: the backend taken, and why.
        statistics: the requested statistics of each row, zero where a row does not count; detached unless they were
            requested to be differentiable.
        weight: of rows that a loss replays (`RobustLoss.replayed`), 1 or 0, where on a device not all of them count; or
            None.
        mean: weighted mean of the values, where a streaming loss formed the gradient of just that. Its backward neither
            compares nor waits; that of `values` is the same number, and may be used for anything else.
    """

    values: PerRow
    tau: PerRow
    backend: BackendChoice
    statistics: dict[str, PerRow] = field(default_factory=dict)
    mean: Scalar | None = None
    weight: PerRow | None = None


class RobustLoss(ShapeChecked, ABC):
    """Maps rows and their temperatures to one value per row; reduction belongs to `Objective`.

    The base checks its arguments, keeps everything in float32 or better, and makes rows of weight zero inert.
    A subclass implements `values`. A loss that needs only the log-mean-exp of a row's scores derives from
    `LogMeanExpLoss` instead, and streams.
    """

    #: True if `replayed` has rows of earlier batches, whose features are all that is known of them.
    replays: bool = False

    @abstractmethod
    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """One value per row. Scores of rows that do not count are zero, and their values are dropped.

        A loss over outcomes must respect `rows.mask`: None if every column is an outcome, else True inside the support
        (the target of a pair is outside, and so is a false negative). Use `functional.log_mean_exp(x, rows.mask)`, or
        fill the columns outside with a large negative finite number, `margins.masked_fill(~rows.mask, -1e30)`: with
        -inf the gradient of tau is NaN.
        """

    def check_rows(self, rows: Rows) -> None:
        """Raise ValueError for rows that the loss is not defined for; called once per evaluation."""

    def choose_backend(self, rows: Rows) -> BackendChoice:
        """The backend for these rows."""
        return BackendChoice("reference", f"{type(self).__name__} is written for the score matrix")

    def replayed(self, predictor: TemperaturePredictor) -> LossOutput | None:
        """Values of rows of earlier batches that a predictor learns from as well, or None.

        `Objective` calls this on a `tau_loss` at every step, and takes the mean over the batch's rows and these.
        """
        return None

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, rows: Rows, tau: Tensor | float | TemperaturePredictor) -> PerRow:
        """Value of each row, see `evaluate`; zero, with zero gradient, where a row does not count."""
        return self.evaluate(rows, tau).values

    @final
    def evaluate(
        self,
        rows: Rows,
        tau: Tensor | float | TemperaturePredictor,
        *,
        statistics: Collection[Statistic] = (),
        differentiable: bool = False,
        check: bool = True,
    ) -> LossOutput:
        """Value and temperature of each row, the backend taken, and statistics.

        Args:
            rows: scores and targets.
            tau: temperature of each row, > 0, or one for all, or a predictor of them.
            statistics: any of "log_sum_exp" (of s / tau), "kl", "entropy" (of softmax(s / tau)), "max", "mean",
                "std", "norm" (of the scores), all over the row's support.
            differentiable: True for "log_sum_exp", "kl" and "entropy" with gradient, to scores and temperatures: an
                entropy bonus, a penalty on KL. Where the loss streams, backward then costs one more product. The
                others are detached, and without it all are.
            check: False if the values were checked elsewhere: an `Objective` checks its host's rows once. Temperatures
                of a diverged predictor then pass, so that a gradient scaler can skip the step.
        """
        if check:
            if _faults.pending.checks:  # of earlier calls: an Objective looks at them itself
                _faults.raise_faults()
            check_kind("rows", rows, Rows, "Write loss(Rows(scores, target), tau).")
            rows.check_values()
            check_several("statistics", statistics, "Pass statistics=('entropy',), say.")
            for name in statistics:
                check_choice("statistics", name, STATISTICS)
        if not isinstance(tau, TemperaturePredictor):
            tau = _one_per_row(rows, tau)
            if check:
                _check_positive(rows, tau)
        self.check_rows(rows)
        backend = self.choose_backend(rows)
        with torch.autocast(rows.target.device.type, enabled=False):
            if isinstance(tau, TemperaturePredictor) and not tau.reads_scores:
                tau = tau.predict(rows)
            if backend.name != "reference":
                return self._streamed(rows, tau, statistics, differentiable, backend)
            return self._from_matrix(rows, tau, statistics, differentiable, backend)

    def evaluate_mirrored(
        self,
        other: "RobustLoss",
        rows: tuple[Rows, Rows],
        taus: tuple[Tensor | TemperaturePredictor, Tensor | TemperaturePredictor],
    ) -> tuple[LossOutput, LossOutput] | None:
        """Two views whose scores are each other's transpose, from one set of scores; None if unsupported.

        Args:
            other: the loss of the second view.
            rows: the views' rows, whose values were checked.
            taus: their temperatures, or predictors.
        """
        return None

    @final
    def one_per_row(self, values: PerRow, rows: Rows) -> PerRow:
        """Return the values, or raise unless there is one per row."""
        n = rows.target.shape[0]
        if not isinstance(values, Tensor) or values.shape != (n,):
            received = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"expected a tensor of shape [{n}], one value per row, from {type(self).__name__}, received "
                f"{received}. Leave the mean over rows to the objective."
            )
        return values

    def _from_matrix(
        self,
        rows: Rows,
        tau: Tensor | TemperaturePredictor,
        statistics: Collection[Statistic],
        differentiable: bool,
        backend: BackendChoice,
    ) -> LossOutput:
        rows = rows.inert_where_invalid().dense()
        if isinstance(tau, TemperaturePredictor):
            tau = tau.predict(rows)
        valid, scores = rows.valid, rows.dense_scores
        safe = torch.where(valid, tau.to(scores.dtype), 1.0)
        values = torch.where(valid, self.one_per_row(self.values(rows, safe), rows), 0.0)
        target = rows.target.long()
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            excluded = None if rows.group is None else rows.excluded
            per_row = row_statistics(scores, target, safe, rows.target_in_support, statistics, excluded)
        per_row = {name: torch.where(valid, x, 0.0) for name, x in per_row.items()}
        return LossOutput(values, tau, backend, per_row)

    def _streamed(
        self,
        rows: Rows,
        tau: Tensor | TemperaturePredictor,
        statistics: Collection[Statistic],
        differentiable: bool,
        backend: BackendChoice,
    ) -> LossOutput:
        raise AssertionError(f"{type(self).__name__} chose {backend.name} and cannot stream")


class Estimator(nn.Module, ABC):
    """Estimates log E_j exp(h_ij / tau_i), the log of the inner mean of a row, from minibatches."""

    #: True if each row's estimate depends on that row's `log_g` alone: rows may then be processed block by block.
    row_by_row: ClassVar[bool] = False

    @abstractmethod
    def propose(self, index: RowIndex | None, log_g: PerRow, valid: RowMask) -> Tensor | None:
        """The estimate after this minibatch; None where `log_g` itself is exact.

        Staged for a later commit in training mode with gradients enabled; otherwise only computed. Outside
        training `index` may be None: held-out samples have no number, and their estimate is the batch's.

        Args:
            index: the rows' numbers in the data set.
            log_g: log of the minibatch mean of each row.
            valid: True for rows that count; the others change nothing.
        """

    @abstractmethod
    def population(self, batch_support: int) -> int:
        """Number of outcomes in the estimated mean, from the number in the batch."""


class Penalty(nn.Module, ABC):
    """Maps the rows of all views to one number that `Objective` adds to its loss.

    The number is a mean over the batch's rows, and counts as if it were the value of each of them: with a `count`,
    or in several processes, it is reduced as the losses of rows are. It includes the penalty's weights.
    """

    #: Its name in the metrics, `"penalty/{name}"`.
    name: ClassVar[str]

    def check_host(self, host: HostAdapter) -> None:
        """Raise ValueError if the penalty does not support this host's rows; `Objective` calls it once."""

    @abstractmethod
    def value(self, rows: Mapping[str, Rows]) -> Scalar:
        """The term, for the rows of every view."""

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, rows: Mapping[str, Rows]) -> Scalar:
        """The term, in float32 or better also under autocast."""
        device = next(iter(rows.values())).target.device
        with torch.autocast(device.type, enabled=False):
            return self.value(rows)


def _one_per_row(rows: Rows, tau: Tensor | float) -> PerRow:
    """One temperature for each row, in float32 or better."""
    if not isinstance(tau, Tensor):
        if not isinstance(tau, Real):
            raise TypeError(
                f"expected tau as one temperature per row, or one for all, or a predictor, received "
                f"{type(tau).__name__}. Pass predictor.predict(rows), or 0.07, say."
            )
        check_positive("tau", tau)
        dtype = torch.promote_types(rows.scores.dtype, torch.float32)
        tau = torch.full(
            (), float(tau), dtype=dtype, device=rows.target.device
        )  # a copy to a device would wait
    if tau.device != rows.target.device:
        tau = tau.to(rows.target.device)
    if tau.is_complex() or tau.dtype == torch.bool:
        raise TypeError(f"expected tau as real numbers, received {tau.dtype}. Pass tau.float().")
    if tau.dtype not in (torch.float32, torch.float64):
        whole = not tau.is_floating_point()
        tau = tau.to(torch.promote_types(rows.scores.dtype, torch.float32)) if whole else tau.float()
    if tau.dim() > 1 or (tau.dim() == 1 and len(tau) != len(rows)):
        raise ValueError(
            f"expected tau of shape [{len(rows)}] or a number, received shape {list(tau.shape)}. "
            "Pass the predictor, or predictor.predict(rows)."
        )
    return tau.expand(len(rows))


def _check_positive(rows: Rows, tau: PerRow) -> None:
    """Raise if a row that counts has a temperature that is not finite and > 0."""
    if not values_can_be_read(tau, rows.weight):
        return
    low, high = extremes(tau)
    if low > 0 and high < math.inf:
        return
    wrong = ~((tau > 0) & (tau < math.inf)) & rows.valid
    if bool(wrong.any()):
        row, value = first_wrong(wrong, tau)
        raise ValueError(
            f"expected temperatures that are finite and > 0, received {value} in row {row}. Pass "
            "predictor.predict(rows), whose bounds keep it so, or tau.clamp(min=0.01)."
        )
