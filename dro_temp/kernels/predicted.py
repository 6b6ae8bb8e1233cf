"""Temperatures that are predicted in the sweep, and the gradient of what they are predicted with."""

from collections.abc import Callable

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.fold import Fold
from dro_temp.kernels.passes import Profile, profile, projected
from dro_temp.kernels.rows import Block, Products, TauOf, support_mask


class PredictedTau:
    """Calls a `TauOf` block by block and collects its parameters' gradient.

    Args:
        tau_of: how to predict.
        products: what is scored.
        trains: whether the parameters' gradient is wanted.
        profile: how to profile a block of scores whose rows have all of it for their support.
    """

    def __init__(
        self,
        tau_of: TauOf,
        products: Products,
        trains: bool,
        profile: Callable[[Scores], Profile],
    ) -> None:
        self._tau_of, self._p, self._trains, self._profile = tau_of, products, trains, profile
        # Aliases: a hook on a real parameter is to see one gradient, that of all rows.
        self._parameters = tuple(
            q.detach().requires_grad_(trains and q.requires_grad) for q in tau_of.parameters
        )
        self._fold = Fold(products.keys, products.bias, scale=products.scale)
        self._totals: list[Tensor | None] = [None] * len(self._parameters)
        self._folded_totals: dict[int, Tensor | None] = {}
        self._live = torch.empty(0)

    def __call__(self, block: slice, scores: Scores) -> PerRow:
        """Temperatures of a block whose scores are in memory."""
        ours = {id(q) for q in self._parameters}

        def project(weight: Tensor, shift: PerRow | None) -> Tensor:
            if self._p.transform is None and id(weight) in ours:
                return self._fold(self._p.queries[block], weight, shift)
            # A copy: the scores are overwritten before autograd may want them back.
            return projected(scores.clone(), weight, shift)

        mask = support_mask(scores, self._p.target[block].long(), self._p.target_in_support)

        def profiled() -> Profile:
            return self._profile(scores) if mask is None else profile(scores, mask)

        with torch.set_grad_enabled(self._trains):
            self._live = self._tau_of(Block(block, scores, mask, project, profiled), self._parameters)
        return self._live.detach().to(scores.dtype)

    def collect(self, gradient: PerRow) -> None:
        """Add the share of the block that was predicted last, given dL/dtau of its rows."""
        if not (self._trains and self._live.requires_grad):
            return
        folded = [leaf for _, leaf in self._fold.folded() if leaf.requires_grad]
        trained = [k for k, q in enumerate(self._parameters) if q.requires_grad]
        # Parameters themselves too: an operation may have taken them as they are, and not their aliases.
        both = [parameters[k] for parameters in (self._parameters, self._tau_of.parameters) for k in trained]
        parts = torch.autograd.grad(
            self._live, both + folded, gradient.to(self._live.dtype), allow_unused=True
        )
        for k, part in zip(trained * 2, parts, strict=False):
            self._totals[k] = added(self._totals[k], part)
        for leaf, part in zip(folded, parts[len(both) :], strict=True):
            self._folded_totals[id(leaf)] = added(self._folded_totals.get(id(leaf)), part)

    def gradients(self) -> list[Tensor | None]:
        """Gradient of each parameter; zero where it had no part in any temperature."""
        position = {id(q): k for k, q in enumerate(self._parameters)}
        for weight, leaf in self._fold.folded():
            total = self._folded_totals.get(id(leaf))
            if total is not None:
                k = position[id(weight)]
                self._totals[k] = added(self._fold.weight_gradient(total), self._totals[k])
        return [
            torch.zeros_like(q) if part is None and q.requires_grad else part
            for q, part in zip(self._parameters, self._totals, strict=True)
        ]


def added(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Their sum, in the memory of the first; None counts as zero."""
    if part is None:
        return total
    # A copy: autograd may hand one tensor out as the gradient of two parameters.
    return part.clone() if total is None else total.add_(part)
