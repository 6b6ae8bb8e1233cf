"""A predictor, an encoder, a readout and a transform that are right, and faults of them."""

import torch
from faults import Fault
from torch import nn

import dro_temp as dt
from dro_temp import functional as F
from dro_temp import testing
from dro_temp.predictors import TempNetEncoder, TempNetReadout


class Linear(dt.TemperaturePredictor):
    """A linear readout of the features: the right one."""

    def __init__(self):
        super().__init__(tau_min=0.1, tau_max=4.0)
        self.readout = nn.Linear(8, 1)

    def raw(self, inputs):
        return self.of_features(inputs.features.to(self.readout.weight.dtype))

    def of_features(self, features):
        return self.readout(features).squeeze(1)


class CentredInTheBatch(Linear):
    def of_features(self, features):
        return super().of_features(features - features.mean(0))


class KnowsItsPlace(Linear):
    def of_features(self, features):
        return super().of_features(features) + 0.1 * torch.arange(len(features))


class RandomInEval(Linear):
    def of_features(self, features):
        return super().of_features(features) + torch.rand(len(features))


class RoundsItsInputs(Linear):
    def of_features(self, features):
        return super().of_features(features.bfloat16().to(features.dtype))


class TakesOnePrecision(Linear):
    def raw(self, inputs):
        return self.of_features(inputs.features)


class Unbounded(Linear):
    def bound(self, raw):
        return raw.exp()


class UnusedWeight(Linear):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))


class OffsetOutsideTheState(Linear):
    def __init__(self):
        super().__init__()
        self.offset = torch.randn(()).item()

    def of_features(self, features):
        return super().of_features(features) + self.offset


class NormalisedByRunningStatistics(Linear):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def of_features(self, features):
        return super().of_features(self.norm(features))


class OfScores(dt.TemperaturePredictor):
    """A slope times the mean score."""

    reads = frozenset({"support"})

    def __init__(self):
        super().__init__(tau_min=0.1, tau_max=4.0)
        self.slope = nn.Parameter(torch.ones(()))

    def raw(self, inputs):
        return self.slope * inputs.support.scores.mean(1)


class WritesIntoTheScores(OfScores):
    def raw(self, inputs):
        inputs.support.scores.clamp_(min=0.0)
        return super().raw(inputs)


class ReturnsAColumn(OfScores):
    def raw(self, inputs):
        return super().raw(inputs)[:, None]


def _predictor(name, build, contract, message):
    return Fault(name, testing.PredictorCase(name, build), contract, message)


PREDICTOR_FAULTS = (
    _predictor("reads other rows of the batch", CentredInTheBatch, "works_row_by_row", "without the others"),
    _predictor("depends on its place in the batch", KnowsItsPlace, "works_row_by_row", r"rows \[3, 0, 4\]"),
    _predictor("random in eval mode", RandomInEval, "is_deterministic_in_eval", "a second call in eval mode"),
    _predictor(
        "rounds its inputs to bfloat16",
        RoundsItsInputs,
        "keeps_the_precision_of_its_inputs",
        "expected float32 inputs to count, received those of torch.bfloat16",
    ),
    _predictor("takes inputs of one precision", TakesOnePrecision, "accepts_low_precision", "same dtype"),
    _predictor("leaves its bounds", Unbounded, "stays_in_bounds", "expected tau in"),
    _predictor(
        "a weight without gradient", UnusedWeight, "has_finite_gradients", "expected a gradient of unused"
    ),
    _predictor("an offset outside of the state", OffsetOutsideTheState, "survives_saving", "load_state_dict"),
    _predictor(
        "running statistics",
        NormalisedByRunningStatistics,
        "forward_writes_nothing",
        "received another norm.running",
    ),
    _predictor(
        "writes into the scores that it reads",
        WritesIntoTheScores,
        "predicts_the_same_while_streaming",
        "while streaming, and of the matrix",
    ),
    _predictor(
        "a column in place of one number per row",
        ReturnsAColumn,
        "predicts_the_same_while_streaming",
        "one number per row, from ReturnsAColumn.raw",
    ),
)


class Encoder(TempNetEncoder):
    """One layer: the right one."""

    reads = frozenset({"features"})

    def __init__(self, width=6):
        super().__init__()
        self.width = width
        self.first = nn.Linear(8, width)

    @property
    def config(self):
        return {"width": self.width}

    def forward(self, inputs):
        return self.first(inputs.features.to(self.first.weight.dtype))


class OrderOfTheBatch(Encoder):
    def forward(self, inputs):
        similarities = super().forward(inputs)
        return similarities + 0.1 * torch.arange(len(similarities))[:, None]


class PooledOverTheBatch(Encoder):
    def pooled(self, similarities):
        return similarities.softmax(0)


class RoundsFeatures(Encoder):
    def forward(self, inputs):
        return super().forward(dt.interfaces.PredictorInputs(inputs.n, features=inputs.features.half()))


class ReadsMoreThanItDeclares(Encoder):
    def forward(self, inputs):
        return super().forward(inputs) + inputs.statistics.max[:, None]


class OtherWidth(Encoder):
    def forward(self, inputs):
        return super().forward(inputs)[:, 1:]


class ForgetsItsWidth(Encoder):
    @property
    def config(self):
        return {}


class PrototypesOfLengthZero(Encoder):
    def set_prototypes(self, embeddings):
        with torch.no_grad():
            self.first.weight.copy_(self.first.weight / (embeddings - embeddings).norm())


class Readout(TempNetReadout):
    """A linear layer: the right one."""

    def forward(self, encoder, similarities):
        return self.last(similarities).squeeze(1)


class IgnoresItsStart(Readout):
    def forward(self, encoder, similarities):
        return super().forward(encoder, similarities) - self.last.bias


class IgnoresItsSimilarities(Readout):
    def forward(self, encoder, similarities):
        return super().forward(encoder, similarities * 0.0)


class StopsTheGradient(Readout):
    def forward(self, encoder, similarities):
        return super().forward(encoder, similarities.detach())


class ComparesRows(Readout):
    def forward(self, encoder, similarities):
        return super().forward(encoder, similarities - similarities.mean(0))


def _encoder(name, build, contract, message):
    return Fault(name, testing.EncoderCase(name, build), contract, message)


def _readout(name, build, contract, message):
    return Fault(name, testing.ReadoutCase(name, build), contract, message)


NETWORK_FAULTS = (
    _encoder("depends on the order of the batch", OrderOfTheBatch, "works_row_by_row", r"rows \[3, 0, 4\]"),
    _encoder("pools over the batch", PooledOverTheBatch, "works_row_by_row", "without the others"),
    _encoder(
        "reads more than it declares",
        ReadsMoreThanItDeclares,
        "stays_in_bounds",
        r"expected 'statistics' among the reads of .* reads=\['features'\]",
    ),
    _encoder(
        "rounds features to float16",
        RoundsFeatures,
        "keeps_the_precision_of_its_inputs",
        "expected float32 inputs to count, received those of torch.float16",
    ),
    _encoder("has another width", OtherWidth, "gives_width_similarities", "width=6"),
    _encoder(
        "leaves its width out of the config",
        lambda: ForgetsItsWidth(7),
        "is_rebuilt_from_its_config",
        "size mismatch",
    ),
    _encoder("divides prototypes by zero", PrototypesOfLengthZero, "starts_from_prototypes", "isfinite"),
    _readout("ignores start_at", IgnoresItsStart, "starts_where_it_is_set", "similarities of zero"),
    _readout(
        "ignores similarities",
        IgnoresItsSimilarities,
        "depends_on_the_similarities",
        "expected numbers that differ",
    ),
    _readout(
        "stops the gradient", StopsTheGradient, "depends_on_the_similarities", "expected a finite gradient"
    ),
    _readout("compares rows", ComparesRows, "works_row_by_row", "without the others"),
)


# --- Transforms of scores ---------------------------------------------------------------------------------


class Softsign(F.ScoreTransform):
    """s / (1 + |s|), whose slope is (1 - |t|)^2: the right one."""

    def __call__(self, scores):
        return scores / (1.0 + scores.abs())

    def apply_(self, scores):
        return scores.div_(1.0 + scores.abs())

    def slope_(self, transformed):
        return transformed.abs_().neg_().add_(1.0).square_()


class SlopeOfTheScores(Softsign):
    """The slope, taken for a function of the scores before the transform."""

    def slope_(self, transformed):
        return transformed.abs_().add_(1.0).square_().reciprocal_()


class Decreasing(Softsign):
    def __call__(self, scores):
        return -super().__call__(scores)

    def apply_(self, scores):
        return super().apply_(scores).neg_()

    def slope_(self, transformed):
        return super().slope_(transformed).neg_()


class LeavesItsArgument(Softsign):
    def apply_(self, scores):
        return self(scores)


class NormalisesAll(Softsign):
    def __call__(self, scores):
        return super().__call__(scores) / scores.abs().amax()


class OverflowsAtLargeScores(F.ScoreTransform):
    def __call__(self, scores):
        return scores.sinh()

    def apply_(self, scores):
        return scores.sinh_()

    def slope_(self, transformed):
        return transformed.square_().add_(1.0).sqrt_()


def _transform(name, build, contract, message):
    return Fault(name, testing.TransformCase(name, build), contract, message)


TRANSFORM_FAULTS = (
    _transform("a wrong slope", SlopeOfTheScores, "has_the_slope_of_its_values", "and the derivative"),
    _transform("a wrong slope in a loss", SlopeOfTheScores, "streams_as_the_matrix", "block by block"),
    _transform("decreasing", Decreasing, "increases", "expected an increasing function"),
    _transform(
        "apply_ that is not in place", LeavesItsArgument, "applies_in_place", "write into its argument"
    ),
    _transform("not elementwise", NormalisesAll, "works_elementwise", "without the others"),
    _transform("overflow", OverflowsAtLargeScores, "keeps_precision", "expected finite values"),
)


FAULTS = PREDICTOR_FAULTS + NETWORK_FAULTS + TRANSFORM_FAULTS
RIGHT = (
    testing.PredictorCase("linear", Linear),
    testing.EncoderCase("one-layer", Encoder),
    testing.ReadoutCase("linear-readout", Readout),
    testing.TransformCase("softsign", Softsign),
)
