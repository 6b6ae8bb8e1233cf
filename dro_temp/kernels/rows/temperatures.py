"""Temperatures of a block of scores: the only place where kernels call a predictor.

A predictor over scores can be called only while a block's scores are in memory. What it reads is built from the block:

    Support           a copy of the scores, since the sweep overwrites them before autograd is done with them  [rows m]
    ScoreStatistics   max, mean, std, entropy, ... from one fused read (`Backend.profile`)                     [rows]
    projections       A z = (A W) h + A c, with A W folded once per step: d instead of m multiplications       [rows K]

Parameters get their gradient block by block, and a hook on a parameter must see one gradient, the sum. So the predictor
runs on aliases of its parameters (`Rebound`); their gradients, and that of the folded A W, are summed here and returned
at the end as the gradient of the one autograd node that the sweep is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dro_temp._autograd import Rebound, add_all_
from dro_temp._typing import PerRow, Scores
from dro_temp.functional.statistics import projected, score_profile, support_mask
from dro_temp.interfaces.predictor import TemperaturePredictor
from dro_temp.interfaces.rows import Support
from dro_temp.interfaces.statistics import FoldedProjection, ScoreStatistics

if TYPE_CHECKING:
    from dro_temp.kernels.rows.chunked import ChunkedForward


class BlockTemperatures:
    """Temperatures predicted block by block while the scores are in memory, and the gradient of the parameters.

    Construct it inside the predictor's forward (`predictor(within=...)`), where FSDP has gathered its parameters. For
    each block call `predict`, then, once dL/dtau of its rows is known, `accumulate`; call `gradients` at the end.

    Args:
        predictor: reads the scores.
        sweep: the sweep whose scores these are.
        train: whether to compute the parameters' gradient.
    """

    def __init__(self, predictor: TemperaturePredictor, sweep: ChunkedForward, *, train: bool) -> None:
        self._sweep, self._plan, self._train, self._reads = sweep, sweep.plan, train, predictor.reads
        self._parameters = predictor.whole_parameters()
        self._aliases = [p.detach().requires_grad_(train and p.requires_grad) for p in self._parameters]
        self._predictor = Rebound(predictor, self._parameters, self._aliases)
        self._method = type(predictor).temperatures_of_block
        self._fold: FoldedProjection | None = None
        self._totals: list[Tensor | None] = [None] * len(self._parameters)
        self._folded_totals: list[Tensor | None] = []

    def predict(self, block: slice, scores: Scores) -> PerRow:
        """Temperatures of a block, [rows], from its scores, [rows m], which stay."""
        plan, mask, support, statistics = self._plan, None, None, None
        if not plan.target_in_support:
            mask = support_mask(scores, plan.target[block], plan.target_in_support)
        if "support" in self._reads:
            support = Support(scores.clone(), mask, self._sweep.support_size)
        if "statistics" in self._reads:
            # The fused profile takes no mask.
            fused = mask is None
            profile = partial(plan.backend.profile, scores) if fused else partial(score_profile, scores, mask)
            statistics = ScoreStatistics(scores, mask, partial(self._project, block, scores), profile)
        features, index = (x if x is None else x[block] for x in (plan.features, plan.index))
        with torch.set_grad_enabled(self._train):
            tau: PerRow = self._predictor.call(
                self._method, len(scores), features, index, support, statistics
            )
        self._tau = tau  # with its graph, for `accumulate`
        return tau.detach().to(scores.dtype)

    def _project(self, block: slice, scores: Scores, weight: Tensor, shift: PerRow | None) -> Tensor:
        """`(scores - shift) @ weight.T`, [rows K]: folded into the keys where that is exact."""
        weight, sweep = self._predictor.substitute(weight), self._sweep
        is_parameter = any(weight is alias for alias in self._aliases)
        if sweep.transform is not None or not is_parameter:
            return projected(scores.clone(), weight, shift)  # a copy, as for the support
        if self._fold is None:
            self._fold = FoldedProjection(sweep.keys, sweep.bias, scale=sweep.scale)
        result: Tensor = self._fold(sweep.queries[block], weight, shift)
        return result

    def accumulate(self, grad_tau: PerRow) -> None:
        """Add the gradient of the block that was predicted last, given dL/dtau of its rows."""
        if not (self._train and self._tau.requires_grad):
            return
        folded = [] if self._fold is None else [leaf for _, leaf in self._fold.folded() if leaf.requires_grad]
        trained = [k for k, alias in enumerate(self._aliases) if alias.requires_grad]
        # The parameters themselves too: an operation may have reached them, and not their aliases.
        leaves = [group[k] for group in (self._aliases, self._parameters) for k in trained]
        parts = torch.autograd.grad(
            self._tau, leaves + folded, grad_tau.to(self._tau.dtype), allow_unused=True
        )
        self._folded_totals += [None] * (len(folded) - len(self._folded_totals))
        totals = [self._totals[k] for k in trained]
        add_all_(totals, parts[: len(trained)])
        add_all_(totals, parts[len(trained) : len(leaves)])
        if folded:
            add_all_(self._folded_totals, parts[len(leaves) :])
        for k, total in zip(trained, totals, strict=True):
            self._totals[k] = total

    def gradients(self) -> list[Tensor | None]:
        """Gradient of each parameter; zero where no temperature depends on it."""
        fold = self._fold
        if fold is not None:
            trained = [weight for weight, leaf in fold.folded() if leaf.requires_grad]
            for weight, total in zip(trained, self._folded_totals, strict=False):
                if total is not None:
                    parts = [fold.weight_gradient(total) if x is weight else None for x in self._aliases]
                    add_all_(self._totals, parts)
        return [
            torch.zeros_like(alias) if total is None and alias.requires_grad else total
            for alias, total in zip(self._aliases, self._totals, strict=True)
        ]
