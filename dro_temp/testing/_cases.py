"""What a case tells the suite about a class: how to build one, what to feed it, and what it claims to be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dro_temp.estimators.moving_average import Schedule
from dro_temp.functional import ScoreTransform
from dro_temp.interfaces import (
    Estimator,
    HostAdapter,
    LinearScores,
    Penalty,
    PredictorInputs,
    RobustLoss,
    Rows,
    SampleRisk,
    ScoreStatistics,
    Support,
    TemperaturePredictor,
)
from dro_temp.predictors import TempNetEncoder, TempNetReadout


@dataclass(frozen=True)
class Case:
    """Anything with a name, which the test report shows."""

    name: str


# --- Predictors and their parts ------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictorCase(Case):
    """A predictor and the sizes of what it reads.

    Args:
        name: shown in the test report.
        build: makes a fresh predictor.
        width: width of the features.
        outcomes: number of outcomes in the support.
        num_samples: size of the data set.
    """

    build: Callable[[], TemperaturePredictor]
    width: int = 8
    outcomes: int = 12
    num_samples: int = 50

    def inputs(self, n: int, *, seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
        """Random features, sample numbers and support for `n` rows."""
        generator = torch.Generator().manual_seed(seed)
        return {
            "features": scale * torch.randn(n, self.width, generator=generator),
            "index": torch.randperm(self.num_samples, generator=generator)[:n],
            "support": Support(scale * torch.randn(n, self.outcomes, generator=generator)),
        }


@dataclass(frozen=True)
class EncoderCase(Case):
    """An encoder of `TempNet` and the sizes of what it reads.

    Args:
        name: shown in the test report.
        build: makes a fresh encoder.
        width: width of the features.
        outcomes: number of outcomes in the support.
    """

    build: Callable[[], TempNetEncoder]
    width: int = 8
    outcomes: int = 12

    def inputs(self, n: int, *, seed: int = 0, scale: float = 1.0) -> PredictorInputs:
        """Random features, sample numbers and scores of `n` rows, and the statistics of the scores."""
        generator = torch.Generator().manual_seed(seed)
        features = scale * torch.randn(n, self.width, generator=generator)
        scores = scale * torch.randn(n, self.outcomes, generator=generator)
        return PredictorInputs(
            n,
            features=features,
            index=torch.arange(n),
            support=Support(scores),
            statistics=ScoreStatistics(scores),
        )


@dataclass(frozen=True)
class ReadoutCase(Case):
    """A readout of `TempNet`.

    Args:
        name: shown in the test report.
        build: makes a fresh readout for an encoder; the class itself, mostly.
    """

    build: Callable[[TempNetEncoder], TempNetReadout]


@dataclass(frozen=True)
class TransformCase(Case):
    """A transform of scores.

    Args:
        name: shown in the test report.
        build: makes the transform.
    """

    build: Callable[[], ScoreTransform]


# --- Losses, penalties and risks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class LossCase(Case):
    """A loss, how it scales, and what it claims to be.

    Args:
        name: shown in the test report.
        build: makes a fresh loss.
        degree: k in F(c h, c tau) = c^k F(h, tau): 1 for the robust loss, 0 for a log-likelihood.
        robust: True for a loss whose value is above the mean margin (in units of tau where `degree` is 0), and that
            weighs outcomes more the higher they score; False for one of which this is not known.
        excludes_target: True for a loss that follows `Rows.target_in_support`: the target of a pair is no outcome,
            that of a class is one. False for one whose target always counts, as in cross-entropy.
        margins_only: False for a loss that reads the scores themselves: a constant in all of them then matters.
        outcomes: columns of the rows that it is fed.
        num_samples: size of the data set.
    """

    build: Callable[[], RobustLoss]
    degree: int = 1
    robust: bool = True
    excludes_target: bool = True
    margins_only: bool = True
    outcomes: int = 12
    num_samples: int = 50

    def rows(self, n: int, *, seed: int = 0, scale: float = 1.0, pairs: bool = False, **changes: Any) -> Rows:
        """Random float64 rows: classes, or pairs whose target is outside the support."""
        generator = torch.Generator().manual_seed(seed)
        scores = scale * torch.randn(n, self.outcomes, generator=generator, dtype=torch.float64)
        index = torch.randperm(self.num_samples, generator=generator)[:n]
        target = torch.randint(self.outcomes, (n,), generator=generator)
        parts: dict[str, Any] = {"scores": scores, "target": target, "index": index}
        return Rows(**(parts | {"target_in_support": not pairs} | changes))

    def tau(self, n: int, *, seed: int = 0, scale: float = 1.0) -> Tensor:
        """Random temperatures between 0.5 and 1.5 times `scale`."""
        generator = torch.Generator().manual_seed(seed + 1)
        return scale * (0.5 + torch.rand(n, generator=generator, dtype=torch.float64))


@dataclass(frozen=True)
class PenaltyCase(Case):
    """A penalty and rows for it.

    Args:
        name: shown in the test report.
        build: makes a fresh penalty.
        width: width of the vectors that are paired.
        views: names of the two views.
    """

    build: Callable[[], Penalty]
    width: int = 5
    views: tuple[str, str] = ("image", "text")

    def rows(self, x: Tensor, y: Tensor) -> dict[str, Rows]:
        """Rows of a batch of pairs of vectors [n width], each side scored against the other."""
        target = torch.arange(len(x))
        sides = ((x, y), (y, x))
        return {
            view: Rows(LinearScores(queries, keys), target, queries, target, target_in_support=False)
            for view, (queries, keys) in zip(self.views, sides, strict=True)
        }

    def vectors(self, n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random float64 unit vectors of both sides."""
        generator = torch.Generator().manual_seed(seed)
        both = torch.randn(2, n, self.width, generator=generator, dtype=torch.float64)
        x, y = nn.functional.normalize(both, dim=2)
        return x, y


@dataclass(frozen=True)
class RiskCase(Case):
    """A risk over samples, and what is known of it.

    Args:
        name: shown in the test report.
        build: makes a fresh risk.
        side: "worst" for a risk from the mean up, "best" for one from the mean down.
        exact: False for a bound of a risk: it may lie beyond the extreme loss.
        smallest: the fewest samples that it takes.
        num_groups: how many groups samples come from, for a risk that reads them.
    """

    build: Callable[[], SampleRisk]
    side: Literal["worst", "best"] = "worst"
    exact: bool = True
    smallest: int = 1
    num_groups: int | None = None

    def losses(self, n: int, *, seed: int = 0, scale: float = 1.0) -> Tensor:
        """Random float64 losses of either sign."""
        return scale * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def weight(self, n: int, *, seed: int = 0) -> Tensor:
        """Random float64 weights between 0.5 and 1.5."""
        generator = torch.Generator().manual_seed(seed + 1)
        return 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)

    def groups(self, n: int, *, seed: int = 0) -> dict[str, Tensor]:
        """The argument `group` of a risk that reads it; of others, nothing."""
        if self.num_groups is None:
            return {}
        generator = torch.Generator().manual_seed(seed + 2)
        return {"group": torch.randint(self.num_groups, (n,), generator=generator)}


# --- Hosts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HostCase(Case):
    """A host, batches for it, and the rows that it should make of them.

    The rows are the specification: scores of the bare model as a matrix, targets, weights, sample numbers, features.
    Let batches hold what the host has to see to, such as padding, ignored labels and sample numbers in no order.

    Args:
        name: shown in the test report.
        build: makes a fresh host; `build(frozen=True)` a frozen one.
        batch: makes a batch of n as the keyword arguments of the host, with an `index`.
        rows: the rows of each view that (host, batch) should give, made without the host's own `rows`: its model is
            called by itself. Scores and features are compared in evaluation mode only, where nothing is random.
    """

    build: Callable[..., HostAdapter]
    batch: Callable[[int], dict[str, Any]]
    rows: Callable[[Any, dict[str, Any]], Mapping[str, Rows]]


# --- Estimators ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EstimatorCase(Case):
    """An estimator over a data set.

    Args:
        name: shown in the test report.
        build: makes a fresh estimator.
        num_samples: size of the data set, at least 10.
    """

    build: Callable[[], Estimator]
    num_samples: int = 50


@dataclass(frozen=True)
class GammaCase(Case):
    """A schedule of gamma.

    Args:
        name: shown in the test report.
        build: makes the schedule.
    """

    build: Callable[[], Schedule]
