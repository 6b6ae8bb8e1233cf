"""The suite fails for faulty parts, each by one mistake, and passes for the right ones.

A fault is a class, or what its case claims of it; beside it stands the contract that has to fail, and what its message
has to say.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.autograd.gradcheck import GradcheckError

import dro_temp as dt
from dro_temp import functional as F
from dro_temp import testing
from dro_temp.interfaces import LinearScores, Rows
from dro_temp.predictors import TempNetEncoder, TempNetReadout


@dataclass(frozen=True)
class Fault:
    """What is wrong, in which case, and which contract says so with which words."""

    name: str
    case: testing.Case
    contract: str
    message: str


def _contract(case, name):
    return next(contract for contract in testing.CONTRACTS[type(case)] if contract.__name__ == name)


# --- Losses --------------------------------------------------------------------------------------------------


class Dual(dt.RobustLoss):
    """tau log E exp(h / tau) over the support: the right one."""

    def values(self, rows, tau):
        return tau * F.log_mean_exp(rows.margins / tau[:, None], rows.mask)


class TargetAlwaysAnOutcome(Dual):
    def values(self, rows, tau):
        return tau * F.log_mean_exp(rows.margins / tau[:, None])


class TargetNeverAnOutcome(Dual):
    def values(self, rows, tau):
        return super().values(replace(rows, target_in_support=False, target_distribution=None), tau)


class BestCase(Dual):
    def values(self, rows, tau):
        return -tau * F.log_mean_exp(-rows.margins / tau[:, None], rows.mask)


class BestCaseWithAMargin(BestCase):
    """As large as a worst case, but the lowest scores weigh most."""

    def values(self, rows, tau):
        return super().values(rows, tau) + 10.0 * tau


class WeighsAllOutcomesAlike(Dual):
    """As large as a robust value, with the gradient of the mean."""

    def values(self, rows, tau):
        value, inside = super().values(rows, tau), rows.support_size
        mask = torch.ones_like(rows.margins) if rows.mask is None else rows.mask
        mean = (rows.margins * mask).sum(1) / inside
        return mean + (value - mean).detach()


class OneNumberForAllRows(Dual):
    def values(self, rows, tau):
        return super().values(rows, tau).mean().expand(len(rows))


class RankedInTheBatch(Dual):
    def values(self, rows, tau):
        values = super().values(rows, tau)
        return values - values.mean()


class IgnoresTheTargetDistribution(Dual):
    def values(self, rows, tau):
        return super().values(replace(rows, target_distribution=None), tau)


class WeighsByTheRowsWeight(Dual):
    def values(self, rows, tau):
        values = super().values(rows, tau)
        return values if rows.weight is None else rows.weight * values


class LeavesTheLogarithm(Dual):
    """exp of scores that were not brought down first."""

    def values(self, rows, tau):
        inside = torch.ones_like(rows.margins) if rows.mask is None else rows.mask
        return tau * ((rows.margins / tau[:, None]).exp() * inside).sum(1).div(rows.support_size).log()


class StopsTheGradientOfTau(Dual):
    def values(self, rows, tau):
        return super().values(rows, tau.detach()) + 0.0 * tau


class CountsItsCalls(Dual):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def values(self, rows, tau):
        self.calls += 1
        return super().values(rows, tau)


class AverageOutsideTheState(Dual):
    """A running mean that no state dict has."""

    def __init__(self):
        super().__init__()
        self.offset = torch.rand(()).item()

    def values(self, rows, tau):
        return super().values(rows, tau) + self.offset * tau


def _loss(name, build, contract, message, **claims):
    return Fault(name, testing.LossCase(name, build, **claims), contract, message)


LOSS_FAULTS = (
    _loss(
        "target_in_support is ignored",
        TargetAlwaysAnOutcome,
        "knows_whether_the_target_is_an_outcome",
        "excludes_target=True",
    ),
    _loss(
        "the target of a class is left out",
        TargetNeverAnOutcome,
        "knows_whether_the_target_is_an_outcome",
        "excludes_target=True",
    ),
    _loss(
        "cross-entropy said to exclude its target",
        dt.InfoNCELoss,
        "knows_whether_the_target_is_an_outcome",
        "excludes_target=True",
        degree=0,
    ),
    _loss(
        "a robust loss said to include its target",
        Dual,
        "knows_whether_the_target_is_an_outcome",
        "excludes_target=False",
        excludes_target=False,
    ),
    _loss(
        "the best case", BestCase, "takes_the_worst_case", "robust=True: expected values of at least the mean"
    ),
    _loss(
        "the lowest scores weigh most",
        BestCaseWithAMargin,
        "takes_the_worst_case",
        "robust=True: expected outcomes",
    ),
    _loss(
        "all outcomes weigh alike",
        WeighsAllOutcomesAlike,
        "has_the_right_gradient_at_first_sight",
        "Jacobian",
    ),
    _loss("one number for all rows", OneNumberForAllRows, "works_row_by_row", "value of row 0"),
    _loss("values less their mean", RankedInTheBatch, "works_row_by_row", "value of row 0"),
    _loss(
        "target_distribution is ignored",
        IgnoresTheTargetDistribution,
        "follows_a_target_distribution",
        "expected the target distribution to count",
    ),
    _loss(
        "weights count twice",
        WeighsByTheRowsWeight,
        "leaves_masked_rows_inert",
        "values of rows of weight 1, 2 and 1",
    ),
    _loss("exp overflows", LeavesTheLogarithm, "survives_extreme_scores", "expected finite values"),
    _loss("no gradient to tau", StopsTheGradientOfTau, "has_the_right_gradient_at_first_sight", "Jacobian"),
    _loss("forward counts its calls", CountsItsCalls, "forward_writes_nothing", "received another calls"),
    _loss("memory outside of the state", AverageOutsideTheState, "survives_saving", "after load_state_dict"),
    _loss("another degree", Dual, "scales_as_declared", "degree=0", degree=0),
    _loss(
        "margins said not to be enough",
        Dual,
        "ignores_a_constant_in_scores",
        "margins_only=False",
        margins_only=False,
    ),
)

# --- Predictors and their parts ------------------------------------------------------------------------------


class Linear(dt.TemperaturePredictor):
    """A linear readout of the features: the right one."""

    def __init__(self):
        super().__init__(tau_min=0.1, tau_max=4.0)
        self.readout = nn.Linear(8, 1)

    def raw(self, reading):
        return self.of_features(reading.features.to(self.readout.weight.dtype))

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
    def raw(self, reading):
        return self.of_features(reading.features)


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

    def forward(self, reading):
        return self.first(reading.features.to(self.first.weight.dtype))


class OrderOfTheBatch(Encoder):
    def forward(self, reading):
        similarities = super().forward(reading)
        return similarities + 0.1 * torch.arange(len(similarities))[:, None]


class PooledOverTheBatch(Encoder):
    def pooled(self, similarities):
        return similarities.softmax(0)


class ReadsMoreThanItDeclares(Encoder):
    def forward(self, reading):
        return super().forward(reading) + reading.summary.max[:, None]


class OtherWidth(Encoder):
    def forward(self, reading):
        return super().forward(reading)[:, 1:]


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

    def raw(self, encoder, similarities):
        return self.last(similarities).squeeze(1)


class IgnoresItsStart(Readout):
    def raw(self, encoder, similarities):
        return super().raw(encoder, similarities) - self.last.bias


class IgnoresItsSimilarities(Readout):
    def raw(self, encoder, similarities):
        return super().raw(encoder, similarities * 0.0)


class StopsTheGradient(Readout):
    def raw(self, encoder, similarities):
        return super().raw(encoder, similarities.detach())


class ComparesRows(Readout):
    def raw(self, encoder, similarities):
        return super().raw(encoder, similarities - similarities.mean(0))


def _encoder(name, build, contract, message):
    return Fault(name, testing.EncoderCase(name, build), contract, message)


def _readout(name, build, contract, message):
    return Fault(name, testing.ReadoutCase(name, build), contract, message)


NETWORK_FAULTS = (
    _encoder("depends on the order of the batch", OrderOfTheBatch, "encodes_row_by_row", r"rows \[3, 0, 4\]"),
    _encoder("pools over the batch", PooledOverTheBatch, "encodes_row_by_row", "pooled"),
    _encoder(
        "reads more than it declares",
        ReadsMoreThanItDeclares,
        "reads_what_it_declares",
        r"reads=\['features'\]",
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
    _readout("compares rows", ComparesRows, "reads_out_one_number_per_row", "without the others"),
)


# --- Transforms ----------------------------------------------------------------------------------------------


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

# --- Penalties and risks -------------------------------------------------------------------------------------


class Spread(dt.Penalty):
    """Mean squared score of pairs that do not belong together: the right one."""

    name = "spread"

    def value(self, rows):
        scores = [r.dense_scores for r in rows.values()]
        return sum(s.square().sum() - s.diagonal().square().sum() for s in scores) / len(scores[0])


class WeighsByPlace(Spread):
    def value(self, rows):
        s = rows["image"].dense_scores
        return super().value(rows) + (s.diagonal() * torch.arange(len(s))).sum()


class OneSideAlone(Spread):
    def value(self, rows):
        scores = rows["image"].scores
        return (scores.queries @ scores.keys.detach().T).square().sum()


class RoundsSimilarities(Spread):
    def value(self, rows):
        return super().value({view: replace(r, scores=r.dense_scores.bfloat16()) for view, r in rows.items()})


def _penalty(name, build, contract, message):
    return Fault(name, testing.PenaltyCase(name, build), contract, message)


class LossWeighted(dt.SampleRisk):
    """The mean under weights that grow with the loss, in the form of a KL tilt: the right one."""

    def value(self, losses, weight, group):
        return F.tilted_mean(losses, F.shares(losses, weight), tilt=1.0)


class BeyondTheWorst(LossWeighted):
    def value(self, losses, weight, group):
        return losses.max() + (losses.max() - losses.mean())


class MeanAndSpread(LossWeighted):
    """Mean plus twice the standard deviation: a lower loss of one sample may be more risk."""

    def value(self, losses, weight, group):
        share = F.shares(losses, weight)
        mean = (share * losses).sum()
        return mean + 2.0 * (share * (losses - mean).square()).sum().add(1e-12).sqrt()


class IgnoresWeights(LossWeighted):
    def value(self, losses, weight, group):
        return super().value(losses, (weight > 0).to(losses.dtype), group)


class BestSamples(LossWeighted):
    def value(self, losses, weight, group):
        return -super().value(-losses, weight, group)


class FirstSamplesCountMore(LossWeighted):
    def value(self, losses, weight, group):
        place = 1.0 / (1.0 + torch.arange(len(losses), dtype=losses.dtype))
        return super().value(losses, weight * place, group)


class WritesInForward(LossWeighted):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))

    def value(self, losses, weight, group):
        with torch.no_grad():
            self.total += 1.0
        return super().value(losses, weight, group)


def _risk(name, build, contract, message, **claims):
    return Fault(name, testing.RiskCase(name, build, **claims), contract, message)


RISK_FAULTS = (
    _penalty(
        "depends on the order of rows",
        WeighsByPlace,
        "does_not_depend_on_the_order_of_pairs",
        "another order",
    ),
    _penalty("trains one side alone", OneSideAlone, "has_the_gradient_of_its_value", "Jacobian|view 'text'"),
    _penalty("rounds similarities", RoundsSimilarities, "gives_one_number", "float64"),
    _risk("beyond the worst loss", BeyondTheWorst, "lies_between_mean_and_extreme", "expected a risk in"),
    _risk("not monotone", MeanAndSpread, "has_weights_that_are_its_gradient", "more loss to be no less risk"),
    _risk("ignores weights", IgnoresWeights, "counts_a_weight_of_two_as_two_samples", "samples of weight 2"),
    _risk("the best case", BestSamples, "lies_between_mean_and_extreme", "side='worst'"),
    _risk(
        "said to take the best case",
        LossWeighted,
        "lies_between_mean_and_extreme",
        "side='best'",
        side="best",
    ),
    _risk("first samples count more", FirstSamplesCountMore, "does_not_depend_on_the_order", "another order"),
    _risk("writes in forward", WritesInForward, "forward_writes_nothing", "received another total"),
)

# --- Estimators ----------------------------------------------------------------------------------------------


class WritesInPropose(dt.LogMovingAverage):
    def propose(self, index, log_g, valid):
        estimate = super().propose(index, log_g, valid)
        self.put("log_u", index[valid], estimate[valid])
        return estimate


class MixesUpRows(dt.LogMovingAverage):
    def propose(self, index, log_g, valid):
        return super().propose(index.flip(0), log_g, valid.flip(0))


class OnePlaceTooFar(dt.LogMovingAverage):
    """Neighbours share a place."""

    def propose(self, index, log_g, valid):
        return super().propose(index // 4, log_g, valid)


class SumsDuplicates(dt.LogMovingAverage):
    def propose(self, index, log_g, valid):
        same = (index[:, None] == index) & valid
        return super().propose(index, log_g + same.sum(1).clamp(min=1).log(), valid)


class LastDuplicateWins(dt.LogMovingAverage):
    def propose(self, index, log_g, valid):
        last = torch.tensor(
            [bool((index[i + 1 :] == x).logical_and(valid[i + 1 :]).any()) for i, x in enumerate(index)]
        )
        return super().propose(index, log_g, valid & ~last)


class DampsTheFirstVisit(dt.LogMovingAverage):
    def averaged(self, log_u, log_g):
        return super().averaged(log_u.masked_fill(log_u.isinf(), 0.0), log_g)


class Overshoots(dt.LogMovingAverage):
    def averaged(self, log_u, log_g):
        return torch.where(log_u.isinf(), log_g, log_g + 0.5 * (log_g - log_u))


class CountsPadding(dt.LogMovingAverage):
    def propose(self, index, log_g, valid):
        return super().propose(index, log_g, torch.ones_like(valid))


class KeepsTheGraph(dt.Exact):
    def propose(self, index, log_g, valid):
        return log_g + 0.0


class SaysRowByRow(dt.Exact):
    row_by_row = True

    def propose(self, index, log_g, valid):
        return F.combine_duplicates(index, log_g.detach())


class RoundsItsMemory(dt.LogMovingAverage):
    memory = ()


class ForgetsToSave(dt.LogMovingAverage):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._non_persistent_buffers_set.add("log_u")


class Rising(dt.GammaSchedule):
    def __call__(self, steps):
        return 1.0 - 0.5 / (1.0 + steps)


class GoesToZero(dt.GammaSchedule):
    def __call__(self, steps):
        return (1.0 - steps.double() / 1000).clamp(min=0.0)


class CountsItsOwnSteps(dt.GammaSchedule):
    def __init__(self):
        self.steps = 0

    def __call__(self, steps):
        self.steps += 1
        return torch.tensor(1.0 / self.steps)


def _estimator(name, kind, contract, message):
    def build():
        return kind() if issubclass(kind, dt.Exact) else kind(50, gamma=0.3)

    return Fault(name, testing.EstimatorCase(name, build), contract, message)


def _gamma(name, build, contract, message):
    return Fault(name, testing.GammaCase(name, build), contract, message)


ESTIMATOR_FAULTS = (
    _estimator(
        "writes in forward",
        WritesInPropose,
        "writes_only_on_commit",
        "before its commit, received another log_u",
    ),
    _estimator("mixes up rows' numbers", MixesUpRows, "keeps_samples_apart", "beside others, and alone"),
    _estimator("samples share a place", OnePlaceTooFar, "keeps_samples_apart", "beside others, and alone"),
    _estimator("counts duplicates twice", SumsDuplicates, "counts_a_duplicate_once", "twice in a batch"),
    _estimator("the last duplicate wins", LastDuplicateWins, "treats_duplicates_alike", "rows in the order"),
    _estimator("damps the first visit", DampsTheFirstVisit, "takes_the_first_visit_whole", "first estimates"),
    _estimator("overshoots", Overshoots, "moves_towards_what_it_sees", "expected estimates between"),
    _estimator("counts padding", CountsPadding, "leaves_invalid_rows_out", "a row that does not count"),
    _estimator("keeps the graph", KeepsTheGraph, "keeps_no_gradient", "without gradient"),
    _estimator("said to be row by row", SaysRowByRow, "declares_what_is_row_by_row", "row_by_row=True"),
    _estimator("memory in bfloat16", RoundsItsMemory, "never_rounds_its_memory", "received another log_u"),
    _estimator("memory that is not saved", ForgetsToSave, "survives_saving", "load_state_dict"),
    _gamma("gamma rises", Rising, "never_rises", "expected gamma never to rise"),
    _gamma("gamma reaches zero", GoesToZero, "stays_in_range", r"expected gamma in \(0, 1\]"),
    _gamma(
        "gamma counts its calls", CountsItsOwnSteps, "is_a_function_of_steps", "after 13 steps, as before"
    ),
)

# --- Hosts: texts with padding, and pairs --------------------------------------------------------------------


class Tagger(dt.HostAdapter):
    """A tag for every word of a batch of texts, some of them shorter: the right one."""

    views = ("word",)

    def __init__(self, *, frozen=False):
        super().__init__(frozen=frozen)
        self.encoder, self.head = nn.Linear(6, 3), nn.Linear(3, 4)

    def rows(self, words, tags, mask, index=None):
        hidden = self.encoder(words).flatten(0, 1)
        scores = LinearScores(hidden, self.head.weight, self.head.bias)
        index = None if index is None else index[:, None].expand_as(tags).flatten()
        return {"word": dt.hosts.labelled_rows(scores, tags.flatten(), hidden, index, mask=mask.flatten())}

    def changed(self, batch, **changes):
        """What the right host makes, with parts exchanged."""
        return {
            view: replace(r, **{k: f(r) for k, f in changes.items()})
            for view, r in Tagger.rows(self, **batch).items()
        }


def _words(n):
    g = torch.Generator().manual_seed(n)
    mask = torch.ones(n, 5, dtype=torch.long)
    mask[0, 3:] = 0
    tags = torch.randint(4, (n, 5), generator=g)
    index = torch.randperm(50, generator=g)[:n]
    return {"words": torch.randn(n, 5, 6, generator=g), "tags": tags, "mask": mask, "index": index}


def _tagged(host, batch):
    """The rows of `Tagger`, by hand."""
    hidden = host.encoder(batch["words"]).flatten(0, 1)
    weight = batch["mask"].flatten().float()
    index = batch["index"].repeat_interleave(5)
    return {"word": Rows(host.head(hidden), batch["tags"].flatten(), hidden, index, weight=weight)}


class DropsPadding(Tagger):
    def rows(self, **batch):
        return self.changed(batch, weight=lambda r: None)


class RotatesTargets(Tagger):
    def rows(self, **batch):
        return self.changed(batch, target=lambda r: r.target.roll(1))


class FlipsNumbers(Tagger):
    def rows(self, **batch):
        return self.changed(batch, index=lambda r: r.index.flip(0))


class RepeatsNumbers(Tagger):
    def rows(self, words, tags, mask, index):
        return super().rows(words, tags, mask, index[:1].expand_as(index))


class DropsNumbers(Tagger):
    def rows(self, **batch):
        return self.changed(batch, index=lambda r: None)


class OwnTemperature(Tagger):
    """Logits that were divided before they became scores."""

    def rows(self, **batch):
        return self.changed(batch, scores=lambda r: r.dense_scores / 0.7)


class StopsTheEncodersGradient(Tagger):
    def rows(self, **batch):
        detached = lambda r: replace(r.scores, queries=r.scores.queries.detach())  # noqa: E731
        return self.changed(batch, scores=detached)


class HalfTheGradient(Tagger):
    """The right scores, of which the head learns half."""

    def rows(self, **batch):
        def half(r):
            return 0.5 * r.dense_scores + 0.5 * replace(r.scores, keys=r.scores.keys.detach()).dense()

        return self.changed(batch, scores=half)


class TargetsOutOfRange(Tagger):
    def rows(self, **batch):
        return self.changed(batch, target=lambda r: r.target + 4)


class SaysTargetsAreNoOutcomes(Tagger):
    def rows(self, **batch):
        return self.changed(batch, target_in_support=lambda r: False)


class UnfreezesWeights(Tagger):
    def rows(self, **batch):
        self.requires_grad_(True)
        return super().rows(**batch)


class TrainsThoughFrozen(Tagger):
    def __init__(self, *, frozen=False):
        super().__init__()


class WritesThoughFrozen(Tagger):
    """A running mean of the head's bias, in forward."""

    def rows(self, **batch):
        with torch.no_grad():
            self.head.bias.add_(0.1)
        return super().rows(**batch)


class UndeclaredView(Tagger):
    def rows(self, **batch):
        rows = super().rows(**batch)
        return rows | {"again": rows["word"]}


class SmoothsLabels(Tagger):
    def rows(self, **batch):
        return self.changed(
            batch, target_distribution=lambda r: F.smoothed_distribution(r.target, r.scores.shape[1], 0.1)
        )


def _pairs(host, batch):
    """The rows of `TwoTower`, by hand."""
    x, y = host.image_encoder(batch["images"]), host.text_encoder(batch["texts"])
    x, y, target = nn.functional.normalize(x, dim=1), nn.functional.normalize(y, dim=1), torch.arange(len(x))
    return {
        "image": Rows(x @ y.T, target, x, batch["index"], target_in_support=False),
        "text": Rows(y @ x.T, target, y, batch["index"], target_in_support=False),
    }


class Pairs(dt.hosts.TwoTower):
    """Two towers: the right one."""

    def __init__(self, *, frozen=False):
        super().__init__(nn.Linear(6, 4), nn.Linear(5, 4), frozen=frozen)


class OtherViewsFeatures(Pairs):
    def rows(self, **batch):
        rows = super().rows(**batch)
        return {view: replace(r, features=rows["text"].features) for view, r in rows.items()}


class OtherViewsScores(Pairs):
    def rows(self, **batch):
        rows = super().rows(**batch)
        return {view: replace(r, scores=rows["image"].scores) for view, r in rows.items()}


class ViewsInAnotherOrder(Pairs):
    def rows(self, **batch):
        return dict(reversed(super().rows(**batch).items()))


def _batch_of_pairs(n):
    g = torch.Generator().manual_seed(n)
    images, texts = torch.randn(n, 6, generator=g), torch.randn(n, 5, generator=g)
    return {"images": images, "texts": texts, "index": torch.randperm(50, generator=g)[:n]}


def _tagger(name, build, contract, message):
    return Fault(name, testing.HostCase(name, build, _words, _tagged), contract, message)


def _pair_host(name, build, contract, message):
    return Fault(name, testing.HostCase(name, build, _batch_of_pairs, _pairs), contract, message)


EXPECTED = "makes_the_expected_rows"
HOST_FAULTS = (
    _tagger("drops the weights of padding", DropsPadding, EXPECTED, "weights of view 'word'"),
    _tagger("rotates targets", RotatesTargets, EXPECTED, "targets of view 'word'"),
    _tagger("flips sample numbers", FlipsNumbers, EXPECTED, "sample numbers of view 'word'"),
    _tagger("repeats sample numbers", RepeatsNumbers, EXPECTED, "sample numbers of view 'word'"),
    _tagger("drops sample numbers", DropsNumbers, EXPECTED, "sample numbers of view 'word'.*received None"),
    _tagger(
        "scores that are not the logits", OwnTemperature, EXPECTED, "scores of view 'word'.*the model's own"
    ),
    _tagger(
        "targets said to be no outcomes",
        SaysTargetsAreNoOutcomes,
        EXPECTED,
        "target_in_support of view 'word'",
    ),
    _tagger("smooths labels unasked", SmoothsLabels, EXPECTED, "target distributions of view 'word'"),
    _tagger(
        "a part without gradient",
        StopsTheEncodersGradient,
        "trains_the_model",
        "expected a gradient of encoder",
    ),
    _tagger("half of the gradient", HalfTheGradient, "trains_the_model", "gradients from the host's scores"),
    _tagger(
        "targets out of range", TargetsOutOfRange, "makes_rows_of_every_view", "expected targets from 0 to 3"
    ),
    _tagger("a view that is not declared", UndeclaredView, "makes_rows_of_every_view", "expected views"),
    _tagger("trains a frozen weight", UnfreezesWeights, "leaves_a_frozen_part_alone", "to stay frozen"),
    _tagger(
        "ignores frozen=True", TrainsThoughFrozen, "leaves_frozen_weights_alone", "expected a frozen host"
    ),
    _tagger(
        "writes to a frozen weight", WritesThoughFrozen, "leaves_frozen_weights_alone", "another head.bias"
    ),
    _pair_host("another view's features", OtherViewsFeatures, EXPECTED, "features of view 'image'"),
    _pair_host("another view's scores", OtherViewsScores, EXPECTED, "scores of view 'text'"),
    _pair_host("views that are no mirrors", OtherViewsScores, "mirrors_as_declared", "transposed"),
    _pair_host("views in another order", ViewsInAnotherOrder, "makes_rows_of_every_view", "expected views"),
)


# --- The tests -----------------------------------------------------------------------------------------------

FAULTS = (
    LOSS_FAULTS
    + PREDICTOR_FAULTS
    + NETWORK_FAULTS
    + TRANSFORM_FAULTS
    + RISK_FAULTS
    + ESTIMATOR_FAULTS
    + HOST_FAULTS
)
RIGHT = (
    testing.LossCase("dual", Dual),
    testing.PredictorCase("linear", Linear),
    testing.EncoderCase("one-layer", Encoder),
    testing.ReadoutCase("linear-readout", Readout),
    testing.TransformCase("softsign", Softsign),
    testing.PenaltyCase("spread", Spread),
    testing.RiskCase("loss-weighted", LossWeighted),
    testing.EstimatorCase("moving-average", lambda: dt.LogMovingAverage(50, gamma=0.3)),
    testing.GammaCase("cosine", lambda: dt.CosineGamma(0.2, epochs=10)),
    testing.HostCase("tagger", Tagger, _words, _tagged),
    testing.HostCase("pairs", Pairs, _batch_of_pairs, _pairs),
)
REFUSALS = (AssertionError, GradcheckError, RuntimeError, ValueError)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{type(fault.case).__name__}: {fault.name}")
def test_a_fault_fails_its_contract(fault):
    with pytest.raises(REFUSALS, match=f"(?s){fault.message}"):
        _contract(fault.case, fault.contract)(fault.case)


@pytest.mark.parametrize(
    ("case", "contract"),
    [p for p in testing.pair(RIGHT) if "compiles" not in p.id],  # slow, and no matter here
)
def test_the_right_one_passes(case, contract):
    contract(case)


def test_every_kind_has_a_right_case_and_faults():
    kinds = set(testing.CONTRACTS)
    assert {type(case) for case in RIGHT} == kinds
    assert {type(fault.case) for fault in FAULTS} == kinds
