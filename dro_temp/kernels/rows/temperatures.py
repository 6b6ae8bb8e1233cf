"""Temperatures of a block of scores: the only place where kernels call a predictor.

A predictor over scores can be called only while a block's scores are in memory. What it reads is built from the block:

    Support           a copy of the scores, since the pass overwrites them before autograd is done with them  [rows m]
    ScoreStatistics   max, mean, std, entropy, ... from one fused read (`Backend.profile`)                     [rows]
    projections       A z = (A W) h + A c, with A W folded once per step: d instead of m multiplications       [rows K]

Parameters get their gradient block by block, and a hook on a parameter must see one gradient, the sum. So the gradients
of the parameters (`SummedGradients`), and that of the folded A W, are summed here, and returned at the end as the
gradient of the one autograd node that the pass is.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from dro_temp._autograd import SummedGradients, add_gradients
from dro_temp._typing import Features, PerRow, Scores
from dro_temp.functional.statistics import ScoreProfile, projected, score_profile, support_mask
from dro_temp.interfaces.rows import Support
from dro_temp.interfaces.statistics import FoldedProjection, ScoreStatistics
from dro_temp.kernels.rows.plan import ChunkPlan


class BlockTemperatures:
    """Temperatures predicted block by block while the scores are in memory, and the gradient of the parameters.

    Construct it inside the predictor's forward (`predictor(run=...)`), where FSDP has gathered its parameters. For
    each block call `predict`, then, once dL/dtau of its rows is known, `accumulate`; call `gradients` at the end.

    Args:
        plan: of the pass whose scores these are; its predictor reads them.
        parameters: the predictor's, in the forward that is differentiated.
        queries: of all rows, [n d].
        fold: makes the folded projection; None where scores are transformed, or groups exclude some, so that none can
            be folded.
        train: whether to compute the parameters' gradient.
    """

    def __init__(
        self,
        plan: ChunkPlan,
        parameters: Sequence[Tensor],
        queries: Features,
        fold: Callable[[], FoldedProjection] | None,
        *,
        train: bool,
    ) -> None:
        assert plan.predictor is not None
        self._plan, self._predictor, self._queries, self._train = plan, plan.predictor, queries, train
        self._sums = SummedGradients(plan.predictor, parameters)
        self._make_fold = fold
        self._fold: FoldedProjection | None = None
        self._folded_totals: list[Tensor | None] = []

    def predict(self, block: slice, scores: Scores, profile: ScoreProfile | None = None) -> PerRow:
        """Temperatures of a block, [rows], from its scores, [rows m], which stay.

        Args:
            block: the rows.
            scores: theirs.
            profile: of all columns, if it was computed already.
        """
        plan, mask, support, statistics = self._plan, None, None, None
        if not plan.target_in_support or plan.exclusions is not None:
            excluded = None if plan.exclusions is None else plan.exclusions.mask(block)
            mask = support_mask(scores, plan.target[block], plan.target_in_support, excluded)
        if "support" in self._predictor.reads:
            support = Support(scores.to(plan.dtype, copy=True), mask, plan.support_size)
        if "statistics" in self._predictor.reads:
            # The fused profile takes no mask.
            fused = mask is None
            compute = partial(plan.backend.profile, scores) if fused else partial(score_profile, scores, mask)
            if fused and profile is not None:
                compute = partial(ScoreProfile, *profile)
            statistics = ScoreStatistics(scores, mask, partial(self._project, block, scores), compute)
        features, index = (x if x is None else x[block] for x in (plan.features, plan.index))
        with torch.set_grad_enabled(self._train), self._sums.computing():
            tau = self._predictor.temperatures_of_block(len(scores), features, index, support, statistics)
        self._tau = tau  # with its graph, for `accumulate`
        return tau.detach().to(plan.dtype)

    def _project(self, block: slice, scores: Scores, weight: Tensor, shift: PerRow | None) -> Tensor:
        """`(scores - shift) @ weight.T`, [rows K]: folded into the keys where that is exact."""
        weight = self._sums.leaf(weight)
        is_parameter = any(weight is leaf for leaf in self._sums.leaves)
        if self._make_fold is None or not is_parameter:
            return projected(
                scores.to(self._plan.dtype, copy=True), weight, shift
            )  # a copy, as for the support
        self._fold = self._fold or self._make_fold()
        return self._fold(self._queries[block], weight, shift)

    def accumulate(self, grad_tau: PerRow) -> None:
        """Add the gradient of the block that was predicted last, given dL/dtau of its rows."""
        if not (self._train and self._tau.requires_grad):
            return
        folded = [] if self._fold is None else [leaf for _, leaf in self._fold.folded() if leaf.requires_grad]
        self._folded_totals += [None] * (len(folded) - len(self._folded_totals))
        parts = self._sums.add(self._tau, grad_tau.to(self._tau.dtype), folded)
        if folded:
            add_gradients(self._folded_totals, range(len(folded)), parts)

    def gradients(self) -> list[Tensor | None]:
        """Gradient of each parameter; zero where no temperature depends on it."""
        sums, fold = self._sums, self._fold
        if fold is not None:
            trained = [weight for weight, leaf in fold.folded() if leaf.requires_grad]
            for weight, total in zip(trained, self._folded_totals, strict=False):
                if total is not None:
                    k = next(k for k, leaf in enumerate(sums.leaves) if leaf is weight)
                    add_gradients(sums.totals, [k], [fold.weight_gradient(total)])
        return [
            torch.zeros_like(leaf) if total is None and leaf.requires_grad else total
            for leaf, total in zip(sums.leaves, sums.totals, strict=True)
        ]
