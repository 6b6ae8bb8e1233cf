"""An estimator and a schedule of gamma with faults."""

import torch
from faults import Fault

import dro_temp as dt
from dro_temp import functional as F
from dro_temp import testing


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


class KeepsTheGraph(dt.estimators.Exact):
    def propose(self, index, log_g, valid):
        return log_g + 0.0


class DeclaredRowByRow(dt.estimators.Exact):
    row_by_row = True

    def propose(self, index, log_g, valid):
        return F.combine_duplicates(index, log_g.detach())


class RoundsItsMemory(dt.LogMovingAverage):
    memory = ()


class ForgetsToSave(dt.LogMovingAverage):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._non_persistent_buffers_set.add("log_u")


class Rising:
    def __call__(self, steps):
        return 1.0 - 0.5 / (1.0 + steps)


class GoesToZero:
    def __call__(self, steps):
        return (1.0 - steps.double() / 1000).clamp(min=0.0)


class CountsItsOwnSteps:
    def __init__(self):
        self.steps = 0

    def __call__(self, steps):
        self.steps += 1
        return torch.tensor(1.0 / self.steps)


def _estimator(name, kind, contract, message):
    def build():
        return kind() if issubclass(kind, dt.estimators.Exact) else kind(50, gamma=0.3)

    return Fault(name, testing.EstimatorCase(name, build), contract, message)


def _gamma(name, build, contract, message):
    return Fault(name, testing.GammaCase(name, build), contract, message)


FAULTS = (
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
    _estimator("declared row by row", DeclaredRowByRow, "declares_what_is_row_by_row", "row_by_row=True"),
    _estimator("memory in bfloat16", RoundsItsMemory, "never_rounds_its_memory", "received another log_u"),
    _estimator("memory that is not saved", ForgetsToSave, "survives_saving", "load_state_dict"),
    _gamma("gamma rises", Rising, "never_rises", "expected gamma never to rise"),
    _gamma("gamma reaches zero", GoesToZero, "stays_in_range", r"expected gamma in \(0, 1\]"),
    _gamma(
        "gamma counts its calls", CountsItsOwnSteps, "is_a_function_of_steps", "after 13 steps, as before"
    ),
)


RIGHT = (
    testing.EstimatorCase("moving-average", lambda: dt.LogMovingAverage(50, gamma=0.3)),
    testing.GammaCase("cosine", lambda: dt.estimators.CosineGamma(0.2, epochs=10)),
)
