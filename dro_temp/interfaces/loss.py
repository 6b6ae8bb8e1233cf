"""The contract of a loss on rows."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from dro_temp._checks import (
    check_choice,
    check_kind,
    check_positive,
    check_tensor,
    extremes,
    first_wrong,
    values_can_be_read,
)
from dro_temp._pytree import pytree
from dro_temp._repr import one_line
from dro_temp._typing import PerRow
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import Rows
from dro_temp.interfaces.scores import at_least_float32
from dro_temp.interfaces.staged import refuse_other_sizes
from dro_temp.kernels import STATISTICS, Statistic
from dro_temp.kernels.eager import statistics_of

#: How rows are computed: "eager" holds the score matrix, the others stream over it.
Path: TypeAlias = Literal["eager", "chunked", "native", "triton"]


@dataclass(frozen=True)
class Choice:
    """The path that a loss takes for some rows.

    Args:
        impl: the path.
        why: the reason, to be read by people.
    """

    impl: Path
    why: str


@pytree(static=("choice",))
@dataclass(frozen=True)
class Evaluated:
    """What a loss found.

    Args:
        values: one value per row, with gradient; zero where a row does not count.
        tau: the temperatures; those of rows that do not count may be any.
        choice: the path taken, and why.
        statistics: what was asked for of each row, detached; zero where a row does not count.
    """

    values: PerRow
    tau: PerRow
    choice: Choice
    statistics: dict[str, PerRow] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Shapes, dtypes and devices, in one line."""
        return one_line(self)


class RobustLoss(nn.Module, ABC):
    """Maps rows and their temperatures to one value per row; reduction belongs to `Objective`.

    The base checks its arguments, keeps everything in float32 or better, and makes rows of weight zero inert.
    A leaf writes `values`. A loss that needs no more of a row's scores than their log-mean-exp derives from
    `LogMeanExpLoss` instead, and never has to hold them.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        refuse_other_sizes([(prefix, self)], state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]

    @abstractmethod
    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """One value per row. Scores of rows that do not count are zero, and their values are dropped."""

    def choose(self, rows: Rows) -> Choice:
        """The path that these rows would take."""
        return Choice("eager", f"{type(self).__name__} is written for the score matrix")

    def replayed(self, predictor: TemperaturePredictor) -> Evaluated | None:
        """Values of rows of earlier batches that a predictor is to learn from as well; None: there are none.

        `Objective` asks a `tau_loss` for them at every step, and takes the mean over the batch's rows and these.
        """
        return None

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, rows: Rows, tau: Tensor | float | TemperaturePredictor) -> PerRow:
        """Value of each row; zero, with zero gradient, where a row does not count.

        Args:
            rows: scores and targets.
            tau: temperature of each row, > 0, or one for all, or a predictor of them.
        """
        return self.evaluate(rows, tau).values

    @final
    def evaluate(
        self,
        rows: Rows,
        tau: Tensor | float | TemperaturePredictor,
        *,
        statistics: Collection[Statistic] = (),
    ) -> Evaluated:
        """Value and temperature of each row, the path taken, and what else was asked for.

        Args:
            rows: scores and targets.
            tau: temperature of each row, > 0, or one for all, or a predictor of them.
            statistics: any of "log_sum_exp" (of s / tau), "kl", "entropy" (of softmax(s / tau)), "max", "mean",
                "std", "norm" (of the scores), all over the row's support.
        """
        check_kind("rows", rows, Rows, "Write loss(Rows(scores, target), tau).")
        rows.check_values()
        _check_statistics(statistics)
        if not isinstance(tau, TemperaturePredictor):
            tau = self._given(rows, tau)
            _check_positive(rows, tau)
        return self._evaluate(rows, tau, statistics)

    @final
    def evaluate_trusted(
        self,
        rows: Rows,
        tau: Tensor | float | TemperaturePredictor,
        *,
        statistics: Collection[Statistic] = (),
    ) -> Evaluated:
        """As `evaluate`, for values that were checked elsewhere.

        An `Objective` looks at its host's rows once for all that is made of them. Temperatures of a predictor that has
        diverged pass, so that a gradient scaler can skip the step.
        """
        return self._evaluate(
            rows, tau if isinstance(tau, TemperaturePredictor) else self._given(rows, tau), statistics
        )

    def _evaluate(
        self, rows: Rows, tau: Tensor | TemperaturePredictor, statistics: Collection[Statistic]
    ) -> Evaluated:
        choice = self.choose(rows)
        with torch.autocast(rows.target.device.type, enabled=False):
            if isinstance(tau, TemperaturePredictor) and not tau.reads_scores:
                tau = tau.of(rows)
            if choice.impl != "eager":
                return self._streamed(rows, tau, statistics, choice)
            rows = rows.inert_where_invalid().dense()
            if isinstance(tau, TemperaturePredictor):
                tau = tau.of(rows)
            safe = tau.to(rows.dense_scores.dtype).masked_fill(~rows.valid, 1.0)
            values = self.values(rows, safe).masked_fill(~rows.valid, 0.0)
            noted = {}
            if statistics:
                found = statistics_of(
                    rows.dense_scores, rows.target.long(), safe, rows.target_in_support, statistics
                )
                noted = {name: x.masked_fill(~rows.valid, 0.0) for name, x in found.items()}
            return Evaluated(values, tau, choice, noted)

    def _streamed(
        self,
        rows: Rows,
        tau: Tensor | TemperaturePredictor,
        statistics: Collection[Statistic],
        choice: Choice,
    ) -> Evaluated:
        raise AssertionError(f"{type(self).__name__} chose {choice.impl} and cannot stream")

    def _given(self, rows: Rows, tau: Tensor | float | TemperaturePredictor) -> PerRow:
        """One temperature for each row, in float32 or better."""
        if isinstance(tau, TemperaturePredictor):
            return tau.of(rows)
        if not isinstance(tau, Tensor):
            tau = _as_tensor(tau, rows.scores.dtype)
        if tau.device != rows.target.device:
            tau = tau.to(rows.target.device)
        if tau.dtype not in _REAL:
            tau = _as_real(tau, rows.scores.dtype)
        if tau.dim() > 1 or (tau.dim() == 1 and len(tau) != len(rows)):
            raise ValueError(
                f"expected tau of shape [{len(rows)}] or a number, received shape {list(tau.shape)}. "
                "Pass the predictor, or predictor.of(rows)."
            )
        return tau.expand(len(rows))


_REAL = (torch.float32, torch.float64)


def _as_tensor(tau: object, dtype: torch.dtype) -> Tensor:
    if not isinstance(tau, Real):
        check_tensor("tau", tau)
    check_positive("tau", tau)  # type: ignore[arg-type]
    return torch.tensor(float(tau), dtype=torch.promote_types(dtype, torch.float32))  # type: ignore[arg-type]


def _as_real(tau: Tensor, dtype: torch.dtype) -> Tensor:
    if tau.is_complex() or tau.dtype == torch.bool:
        raise TypeError(f"expected tau as real numbers, received {tau.dtype}. Pass tau.float().")
    return (
        at_least_float32(tau)
        if tau.is_floating_point()
        else tau.to(torch.promote_types(dtype, torch.float32))
    )


def _check_positive(rows: Rows, tau: PerRow) -> None:
    """Raise on a temperature of a row that counts which is none."""
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
            "predictor.of(rows), whose bounds keep it so, or tau.clamp(min=0.01)."
        )


def _check_statistics(statistics: Collection[str]) -> None:
    if isinstance(statistics, str) or not isinstance(statistics, Collection):
        raise TypeError(
            f"expected statistics as a collection of names, received {statistics!r}. Pass statistics=('entropy',), say."
        )
    for name in statistics:
        check_choice("each of statistics", name, STATISTICS)
