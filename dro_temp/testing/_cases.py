"""What a case tells the suite about a class: how to build one, and what to feed it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dro_temp.estimators.moving_average import Schedule
from dro_temp.interfaces import (
    Estimator,
    HostAdapter,
    LinearScores,
    Penalty,
    RobustLoss,
    Rows,
    SampleRisk,
    Support,
    TemperaturePredictor,
)


@dataclass(frozen=True)
class Case:
    """Anything with a name, which the test report shows."""

    name: str


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
class LossCase(Case):
    """A loss and how it scales.

    Args:
        name: shown in the test report.
        build: makes a fresh loss.
        degree: k in F(c h, c tau) = c^k F(h, tau): 1 for the robust loss, 0 for a log-likelihood.
        outcomes: columns of the rows that it is fed.
        num_samples: size of the data set.
        margins_only: False for a loss that reads the scores themselves: a constant in all of them then matters.
    """

    build: Callable[[], RobustLoss]
    degree: int = 1
    outcomes: int = 12
    num_samples: int = 50
    margins_only: bool = True

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
class HostCase(Case):
    """A host, batches for it, and the bare model's own scores.

    Args:
        name: shown in the test report.
        build: makes a fresh host; `build(frozen=True)` a frozen one.
        batch: makes a batch of n as the keyword arguments of the host, with an `index`.
        scores: the scores of each view as the bare model computes them, from (host, batch).
    """

    build: Callable[..., HostAdapter]
    batch: Callable[[int], dict[str, Any]]
    scores: Callable[[Any, dict[str, Any]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class EstimatorCase(Case):
    """An estimator over a data set.

    Args:
        name: shown in the test report.
        build: makes a fresh estimator.
        num_samples: size of the data set.
    """

    build: Callable[[], Estimator]
    num_samples: int = 50


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
        x, y = torch.nn.functional.normalize(both, dim=2)
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

    def given(self, n: int, *, seed: int = 0) -> dict[str, Tensor]:
        """What else the risk reads: `group`, or nothing."""
        if self.num_groups is None:
            return {}
        generator = torch.Generator().manual_seed(seed + 2)
        return {"group": torch.randint(self.num_groups, (n,), generator=generator)}


@dataclass(frozen=True)
class GammaCase(Case):
    """A schedule of gamma.

    Args:
        name: shown in the test report.
        build: makes the schedule.
    """

    build: Callable[[], Schedule]
