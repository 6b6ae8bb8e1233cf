"""A penalty and a risk that are right, and faults of them."""

from dataclasses import replace

import torch
from faults import Fault

import dro_temp as dt
from dro_temp import functional as F
from dro_temp import testing


class Spread(dt.interfaces.Penalty):
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


class LossWeighted(dt.interfaces.SampleRisk):
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


FAULTS = (
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
        "declared to take the best case",
        LossWeighted,
        "lies_between_mean_and_extreme",
        "side='best'",
        side="best",
    ),
    _risk("first samples count more", FirstSamplesCountMore, "does_not_depend_on_the_order", "another order"),
    _risk("writes in forward", WritesInForward, "forward_writes_nothing", "received another total"),
)


RIGHT = (
    testing.PenaltyCase("spread", Spread),
    testing.RiskCase("loss-weighted", LossWeighted),
)
