"""The seam between kernels and predictors: a block of scores asks for its rows' temperatures here, and nowhere else."""

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

    To be made inside the predictor's forward (`predictor(within=...)`), where its parameters are whole. For each
    block: `predict`, then, once its rows' dL/dtau is known, `accumulate`; `gradients` at the end.

    Args:
        predictor: reads the scores.
        sweep: the sweep that asks.
        train: whether the parameters' gradient is wanted.
    """

    def __init__(self, predictor: TemperaturePredictor, sweep: ChunkedForward, *, train: bool) -> None:
        self._sweep, self._plan, self._train, self._reads = sweep, sweep.plan, train, predictor.reads
        self._parameters = predictor.whole_parameters()
        # Aliases: a hook on a parameter is to see one gradient, that of all blocks.
        self._aliases = [p.detach().requires_grad_(train and p.requires_grad) for p in self._parameters]
        self._predictor = Rebound(predictor, self._parameters, self._aliases)
        self._method = type(predictor).temperatures_of_block
        self._fold: FoldedProjection | None = None
        self._totals: list[Tensor | None] = [None] * len(self._parameters)
        self._folded_totals: list[Tensor | None] = []

    def predict(self, block: slice, scores: Scores) -> PerRow:
        """Temperatures of a block.

        Args:
            block: its rows.
            scores: their scores, [rows m]; not changed.
        """
        plan, mask, support, statistics = self._plan, None, None, None
        if not plan.target_in_support:
            mask = support_mask(scores, plan.target[block], plan.target_in_support)
        if "support" in self._reads:
            # A copy, since the sweep overwrites its buffer before autograd may look at it again.
            support = Support(scores.clone(), mask, self._sweep.support_size)
        if "statistics" in self._reads:
            whole = mask is None
            profile = partial(plan.backend.profile, scores) if whole else partial(score_profile, scores, mask)
            statistics = ScoreStatistics(scores, mask, partial(self._project, block, scores), profile)
        features, index = (x if x is None else x[block] for x in (plan.features, plan.index))
        with torch.set_grad_enabled(self._train):
            tau = self._predictor.call(self._method, len(scores), features, index, support, statistics)
        self._tau: Tensor = tau
        detached: PerRow = self._tau.detach().to(scores.dtype)
        return detached

    def _project(self, block: slice, scores: Scores, weight: Tensor, shift: PerRow | None) -> Tensor:
        """`(scores - shift) @ weight.T`: by folding a weight of the predictor's own into the keys, where that is exact."""
        weight, sweep = self._predictor.substitute(weight), self._sweep
        own = any(weight is alias for alias in self._aliases)
        if sweep.transform is not None or not own:
            return projected(scores.clone(), weight, shift)  # a copy, as above
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
        both = [group[k] for group in (self._aliases, self._parameters) for k in trained]
        parts = torch.autograd.grad(self._tau, both + folded, grad_tau.to(self._tau.dtype), allow_unused=True)
        self._folded_totals += [None] * (len(folded) - len(self._folded_totals))
        totals = [self._totals[k] for k in trained]
        add_all_(totals, parts[: len(trained)])
        add_all_(totals, parts[len(trained) : len(both)])
        if folded:
            add_all_(self._folded_totals, parts[len(both) :])
        for k, total in zip(trained, totals, strict=True):
            self._totals[k] = total

    def gradients(self) -> list[Tensor | None]:
        """Gradient of each parameter; zero where it had no part in any temperature."""
        if self._fold is not None:
            trained = [weight for weight, leaf in self._fold.folded() if leaf.requires_grad]
            for weight, total in zip(trained, self._folded_totals, strict=False):
                if total is not None:
                    parts = [
                        self._fold.weight_gradient(total) if alias is weight else None
                        for alias in self._aliases
                    ]
                    add_all_(self._totals, parts)
        return [
            torch.zeros_like(alias) if total is None and alias.requires_grad else total
            for alias, total in zip(self._aliases, self._totals, strict=True)
        ]
