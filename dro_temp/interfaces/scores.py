"""Scores that are not computed yet."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, Scores


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@dataclass(frozen=True)
class LinearScores:
    """Scores that are products of queries and keys, `queries @ keys.T + bias`, not yet computed.

    A language-model head, a classifier's last layer and the other tower of a pair are all of this form, which
    is what lets one kernel serve them.

    Args:
        queries: one vector per row.
        keys: one vector per outcome.
        bias: one number per outcome.
        transform: elementwise function of the scores, for example a soft cap.
    """

    queries: Features
    keys: Features
    bias: PerRow | None = None
    transform: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check shapes."""
        q, k = tuple(self.queries.shape), tuple(self.keys.shape)
        if len(q) != 2 or len(k) != 2 or q[1] != k[1]:
            raise ValueError(
                f"expected queries [n, d] and keys [m, d] of one width d, received {list(q)} and {list(k)}. "
                "Flatten leading dimensions, and give both the same width."
            )
        if self.bias is not None and tuple(self.bias.shape) != (k[0],):
            raise ValueError(
                f"expected a bias of shape [{k[0]}], one per key, received {list(self.bias.shape)}."
                " Pass head.bias, or None."
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, outcomes)."""
        return self.queries.shape[0], self.keys.shape[0]

    def dense(self) -> Scores:
        """The score matrix, in float32 or better: at tau = 0.005 a bfloat16 product is off by 0.4 in the exponent."""
        with torch.autocast(self.queries.device.type, enabled=False):
            scores = at_least_float32(self.queries) @ at_least_float32(self.keys).T
            if self.bias is not None:
                scores = scores + self.bias
            return scores if self.transform is None else self.transform(scores)

    def detached(self) -> "LinearScores":
        """The same scores, through which no gradient flows."""
        bias = None if self.bias is None else self.bias.detach()
        return LinearScores(self.queries.detach(), self.keys.detach(), bias, self.transform)
