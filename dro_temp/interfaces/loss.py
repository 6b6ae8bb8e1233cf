"""The contract of a loss on rows."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from dro_temp._checks import check_positive
from dro_temp._pytree import pytree
from dro_temp._typing import PerRow
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import Rows
from dro_temp.interfaces.scores import at_least_float32
from dro_temp.interfaces.staged import refuse_other_sizes
from dro_temp.kernels import Statistic
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
        choice = self.choose(rows)
        with torch.autocast(rows.target.device.type, enabled=False):
            if not (isinstance(tau, TemperaturePredictor) and tau.reads_scores):
                tau = self._given(rows, tau)
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

    def _given(self, rows: Rows, tau: Tensor | float | TemperaturePredictor) -> Tensor:
        if isinstance(tau, TemperaturePredictor):
            return tau.of(rows)
        if isinstance(tau, float | int):
            check_positive("tau", tau)
            tau = torch.tensor(tau, dtype=at_least_float32(torch.empty(0, dtype=rows.scores.dtype)).dtype)
        tau = torch.as_tensor(tau, device=rows.target.device)
        if tau.dim() > 1 or (tau.dim() == 1 and len(tau) != len(rows)):
            raise ValueError(
                f"expected tau of shape [{len(rows)}] or a number, received shape {list(tau.shape)}. "
                "Pass the predictor, or predictor.of(rows)."
            )
        return at_least_float32(tau).expand(len(rows))
