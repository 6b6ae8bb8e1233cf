"""What a case tells the suite about a class: how to build one, what to feed it, and what it claims to be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from dro_temp import functional as F
from dro_temp.estimators.moving_average import Schedule
from dro_temp.functional import ScoreTransform
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
from dro_temp.predictors import HiddenEncoder, TempNet, TempNetEncoder, TempNetReadout

Part = TypeVar("Part")


@dataclass(frozen=True)
class Case(Generic[Part]):
    """What every case has.

    Args:
        name: shown in the test report.
        build: makes a fresh part.
    """

    name: str
    build: Callable[..., Part]


@dataclass(frozen=True)
class _RowsCase(Case[Part]):
    """A predictor or a part of one, and the sizes of what it reads."""

    width: int = 8
    outcomes: int = 12
    num_samples: int = 50

    def predictor(self) -> TemperaturePredictor:
        """What the contracts of predictors are tried on."""
        raise NotImplementedError

    def inputs(self, n: int, *, seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
        """Random features, sample numbers and support for `n` rows."""
        generator = torch.Generator().manual_seed(seed)
        return {
            "features": scale * torch.randn(n, self.width, generator=generator),
            "index": torch.randperm(self.num_samples, generator=generator)[:n],
            "support": Support(scale * torch.randn(n, self.outcomes, generator=generator)),
        }


class PredictorCase(_RowsCase[TemperaturePredictor]):
    """A predictor and the sizes of what it reads.

    Args:
        width: width of the features.
        outcomes: number of outcomes in the support.
        num_samples: size of the data set.
    """

    def predictor(self) -> TemperaturePredictor:
        """The predictor itself."""
        return self.build()


class EncoderCase(_RowsCase[TempNetEncoder]):
    """An encoder of `TempNet` and the sizes of what it reads, see `PredictorCase`."""

    def predictor(self) -> TempNet:
        """A TempNet of which every similarity, and all that is pooled, counts."""
        return TempNet(self.build(), tau_min=0.1, tau_max=4.0, readout=_SumReadout)


class _SumReadout(TempNetReadout):
    def forward(self, encoder: TempNetEncoder, similarities: Tensor) -> Tensor:
        raw: Tensor = self.last(similarities + encoder.pooled(similarities)).squeeze(1)
        return raw


class ReadoutCase(_RowsCase[TempNetReadout]):
    """A readout of `TempNet`; `build` takes the encoder, and mostly is the class itself."""

    def predictor(self) -> TempNet:
        """A TempNet with the readout, whose parameters are no longer those of the start."""
        network = TempNet(HiddenEncoder(self.width, width=6), tau_min=0.1, tau_max=4.0)
        network.readout = self.build(network.encoder)
        with torch.no_grad():
            for parameter in network.readout.parameters():
                parameter.add_(torch.randn_like(parameter))
        return network


#: What the contracts of predictors are tried on.
TemperatureCase: TypeAlias = PredictorCase | EncoderCase | ReadoutCase


class TransformCase(Case[ScoreTransform]):
    """A transform of scores."""


@dataclass(frozen=True)
class LossCase(Case[RobustLoss]):
    """A loss, how it scales, and what it claims to be.

    Args:
        degree: k in F(c h, c tau) = c^k F(h, tau): 1 for the robust loss, 0 for a log-likelihood,
            None if it does not scale so.
        robust: True for a loss whose value is above the mean margin (in units of tau where `degree` is 0), and that
            weighs outcomes more the higher they score; False for one of which this is not known.
        excludes_target: True for a loss that follows `Rows.target_in_support`: the target of a class is an
            outcome, that of a pair is not. False for one whose target always counts, as in cross-entropy.
        margins_only: False for a loss that reads the scores themselves: a constant in all of them then matters.
        trains_host: False for a loss that teaches temperatures alone, and refuses scores that require gradient.
        positives: True for a loss whose rows learn from all columns of their group, as further positives; for others
            these are no outcomes.
        outcomes: columns of the rows that it is fed.
        num_samples: size of the data set.
    """

    degree: int | None = 1
    robust: bool = True
    excludes_target: bool = True
    margins_only: bool = True
    trains_host: bool = True
    positives: bool = False
    outcomes: int = 12
    num_samples: int = 50

    def rows(self, n: int, *, seed: int = 0, pairs: bool = False, **changes: Any) -> Rows:
        """Random float64 rows: classes, or pairs whose target is outside the support."""
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(n, self.outcomes, generator=generator, dtype=torch.float64)
        index = torch.randperm(self.num_samples, generator=generator)[:n]
        target = torch.randint(self.outcomes, (n,), generator=generator)
        parts: dict[str, Any] = {"scores": scores, "target": target, "index": index}
        return Rows(**(parts | {"target_in_support": not pairs} | changes))

    def groups(self, rows: Rows, *, seed: int = 0) -> dict[str, Tensor]:
        """Groups for rows: some columns of the row's own, some left out, and outcomes for every row."""
        generator = torch.Generator().manual_seed(seed + 2)
        group = torch.randint(-1, 3, (len(rows),), generator=generator)
        column_group = torch.randint(-1, 3, (self.outcomes,), generator=generator)
        free = torch.arange(self.outcomes) % 3
        return {
            "group": group,
            "column_group": column_group.where(free > 0, F.UNGROUPED).where(free < 2, F.LEFT_OUT),
        }

    def learned(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors, requiring gradient; none of them if the loss trains no host."""
        return tuple(x.requires_grad_() for x in tensors) if self.trains_host else ()

    def tau(self, n: int, *, seed: int = 0) -> Tensor:
        """Random float64 temperatures between 0.5 and 1.5."""
        generator = torch.Generator().manual_seed(seed + 1)
        return 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class PenaltyCase(Case[Penalty]):
    """A penalty and rows for it.

    Args:
        width: width of the vectors that are paired.
        views: names of the two views.
    """

    width: int = 5
    views: tuple[str, str] = ("image", "text")

    def rows(self, x: Tensor, y: Tensor) -> dict[str, Rows]:
        """Rows of a batch of pairs of vectors [n width], each side scored against the other."""
        target = torch.arange(len(x))
        return {
            view: Rows(LinearScores(queries, keys), target, queries, target, target_in_support=False)
            for view, queries, keys in zip(self.views, (x, y), (y, x), strict=True)
        }

    def vectors(self, n: int) -> tuple[Tensor, Tensor]:
        """Random float64 unit vectors of both sides."""
        generator = torch.Generator().manual_seed(0)
        both = torch.randn(2, n, self.width, generator=generator, dtype=torch.float64)
        x, y = nn.functional.normalize(both, dim=2)
        return x, y


@dataclass(frozen=True)
class RiskCase(Case[SampleRisk]):
    """A risk over samples, and what is known of it.

    Args:
        side: "worst" for a risk from the mean up, "best" for one from the mean down.
        exact: False for a bound of a risk: it may lie beyond the extreme loss.
        smallest: the fewest samples that it takes.
        num_groups: how many groups samples come from, for a risk that reads them.
        num_samples: size of the data set, 50 or more, for a risk that knows samples by their numbers.
    """

    side: Literal["worst", "best"] = "worst"
    exact: bool = True
    smallest: int = 1
    num_groups: int | None = None
    num_samples: int | None = None

    def losses(self, n: int, *, seed: int = 0, scale: float = 1.0) -> Tensor:
        """Random float64 losses of either sign."""
        return scale * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def weight(self, n: int, *, seed: int = 0) -> Tensor:
        """Random float64 weights between 0.5 and 1.5."""
        generator = torch.Generator().manual_seed(seed + 1)
        return 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)

    def groups(self, n: int, *, seed: int = 0) -> dict[str, Tensor]:
        """The arguments `group` and `index` of a risk that reads them; of others, nothing."""
        generator = torch.Generator().manual_seed(seed + 2)
        inputs = {}
        if self.num_groups is not None:
            inputs["group"] = torch.randint(self.num_groups, (n,), generator=generator)
        if self.num_samples is not None:
            inputs["index"] = torch.randperm(self.num_samples, generator=generator)[:n]
        return inputs


@dataclass(frozen=True)
class HostCase(Case[HostAdapter]):
    """A host, batches for it, and the rows that it should make of them.

    The rows are the specification: scores of the bare model as a matrix, targets, weights, sample numbers, features.
    Put into the batches whatever the host must handle, such as padding, ignored labels and sample numbers in no order.
    `build(frozen=True)` makes a frozen host.

    Args:
        batch: makes a batch of n as the keyword arguments of the host, with an `index`.
        rows: the rows of each view that (host, batch) should give, made without the host's own `rows`: its model is
            called by itself. Scores and features are compared in evaluation mode only, where nothing is random.
    """

    batch: Callable[[int], dict[str, Any]]
    rows: Callable[[Any, dict[str, Any]], Mapping[str, Rows]]


class EstimatorCase(Case[Estimator]):
    """An estimator over a data set of ten samples or more."""


class GammaCase(Case[Schedule]):
    """A schedule of gamma."""
