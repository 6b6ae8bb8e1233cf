"""A loss on rows that is right, and faults of it."""

from dataclasses import replace

import torch
from faults import Fault

import dro_temp as dt
from dro_temp import functional as F
from dro_temp import testing


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


class IgnoresGroups(Dual):
    def values(self, rows, tau):
        return super().values(replace(rows, group=None, column_group=None), tau)


class CountsExcludedOutcomes(Dual):
    """No gradient flows to what is excluded, and it moves the value all the same."""

    def values(self, rows, tau):
        values = super().values(rows, tau)
        excluded = rows.excluded
        return values if excluded is None else values + (rows.dense_scores.detach() * excluded).sum(1)


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


class MeanMargin(Dual):
    def values(self, rows, tau):
        inside = torch.ones_like(rows.margins) if rows.mask is None else rows.mask
        return (rows.margins * inside).sum(1) / rows.support_size


class LeavesTheLogarithm(Dual):
    """exp of scores that were not brought down first."""

    def values(self, rows, tau):
        inside = torch.ones_like(rows.margins) if rows.mask is None else rows.mask
        return tau * ((rows.margins / tau[:, None]).exp() * inside).sum(1).div(rows.support_size).log()


class StopsTheGradientOfScores(Dual):
    def values(self, rows, tau):
        return super().values(rows.detached(), tau)


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


class ReadsTheScores(dt.losses.LogMeanExpLoss):
    def from_log_mean_exp(self, rows, log_g, tau):
        return tau * log_g + 0.0 * rows.margins.mean(1)


def _loss(name, build, contract, message, **claims):
    return Fault(name, testing.LossCase(name, build, **claims), contract, message)


FAULTS = (
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
        "cross-entropy declared to exclude its target",
        dt.InfoNCELoss,
        "knows_whether_the_target_is_an_outcome",
        "excludes_target=True",
        degree=0,
    ),
    _loss(
        "a robust loss declared to include its target",
        Dual,
        "knows_whether_the_target_is_an_outcome",
        "excludes_target=False",
        excludes_target=False,
    ),
    _loss(
        "groups are ignored",
        IgnoresGroups,
        "leaves_excluded_outcomes_out",
        "expected no gradient of scores that groups exclude",
    ),
    _loss(
        "excluded outcomes count",
        CountsExcludedOutcomes,
        "leaves_excluded_outcomes_out",
        "values with other scores where groups exclude them",
    ),
    _loss("the best case", BestCase, "takes_the_worst_case", "robust=True: expected values above the mean"),
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
    _loss(
        "the mean declared robust", MeanMargin, "takes_the_worst_case", "robust=True: expected values above"
    ),
    _loss(
        "the gradient of another value",
        WeighsAllOutcomesAlike,
        "has_the_right_gradient_at_first_sight",
        "Jacobian",
    ),
    _loss(
        "a streaming loss that makes the scores",
        ReadsTheScores,
        "streams_what_it_computes",
        "expected a streaming loss to read log_g and tau alone",
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
    _loss(
        "no gradient to the scores",
        StopsTheGradientOfScores,
        "trains_the_host_or_says_so",
        "expected a gradient of the scores",
    ),
    _loss(
        "the host declared not to learn",
        Dual,
        "trains_the_host_or_says_so",
        "trains_host=False",
        trains_host=False,
    ),
    _loss("another degree", Dual, "scales_as_declared", "degree=0", degree=0),
    _loss(
        "margins declared not to be enough",
        Dual,
        "ignores_a_constant_in_scores",
        "margins_only=False",
        margins_only=False,
    ),
)


RIGHT = (testing.LossCase("dual", Dual),)
