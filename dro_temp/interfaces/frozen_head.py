"""A frozen linear head, prepared for decoding."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, Scores
from dro_temp.interfaces.statistics import FoldedProjection, ScoreStatistics

#: `(queries, scores) -> temperatures`, for a frozen head's own queries and logits.
Decoder: TypeAlias = Callable[[Features, Scores], PerRow]


class FrozenHead:
    r"""The weights of a frozen head, with a predictor's projection of its logits folded into them.

    In generation the logits exist anyway; a network's first layer over them, $A z = (A W) h$, then costs a small
    product with the hidden state instead of one as wide as the vocabulary. `hosts.model_head` explains how
    the library's four kinds of head relate.

    Args:
        keys: the head's weight, [m d].
        bias: the head's bias, or None.

    Example:
        >>> import torch, dro_temp as dt
        >>> weight, hidden = torch.randn(500, 16), torch.randn(1, 16)
        >>> tempnet = dt.TempNet.for_logits(500, tau_min=0.1, tau_max=2.0).eval()
        >>> temperatures = tempnet.decoder(FrozenHead(weight))  # built once
        >>> temperatures(hidden, hidden @ weight.T).shape  # called for every token
        torch.Size([1])
    """

    def __init__(self, keys: Features, bias: PerRow | None = None) -> None:
        self._fold = FoldedProjection(keys, bias)

    def statistics(self, queries: Features, scores: Scores) -> ScoreStatistics:
        """Statistics of the head's logits.

        Args:
            queries: the head's input, [n d].
            scores: its output, [n m], neither scaled nor capped.
        """
        return ScoreStatistics(scores, project=lambda weight, shift: self._fold(queries, weight, shift))

    @torch.no_grad()
    def folded(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(A W, A c, A 1)` of a projection A of the logits, [K d], [K] and [K], in float32 or better."""
        return self._fold.parts(weight)
