"""Scores that are not computed yet."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dro_temp._checks import check_floats
from dro_temp._pytree import pytree
from dro_temp._repr import one_line
from dro_temp._typing import Features, PerRow, RowIndex, Scores
from dro_temp.kernels.eager import dense_scores
from dro_temp.kernels.products import work_dtype


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@pytree(static=("transform",))
@dataclass(frozen=True)
class LinearScores:
    """Scores that are products of queries and keys, `queries @ keys.T + bias`, not yet computed.

    A language-model head, a classifier's last layer and the other tower of a pair are all of this form, which
    is what lets one kernel serve them.

    Args:
        queries: one vector per row.
        keys: one vector per outcome.
        bias: one number per outcome.
        transform: elementwise function of the scores: `SoftCap`, `Scale`, or another `ScoreTransform`; a plain
            function serves as well, but its scores are always computed as a matrix.
        local_keys: this process's own keys, if `keys` were gathered from several processes.

    Example:
        >>> head = torch.nn.Linear(8, 100)
        >>> LinearScores(torch.randn(3, 8), head.weight, head.bias).shape
        (3, 100)
    """

    queries: Features
    keys: Features
    bias: PerRow | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    local_keys: Features | None = None

    def __post_init__(self) -> None:
        """Check types, shapes and devices."""
        check_floats("queries", self.queries)
        check_floats("keys", self.keys)
        if self.bias is not None:
            check_floats("bias", self.bias)
        for name in ("queries", "keys", "bias"):
            if hasattr(getattr(self, name), "full_tensor"):
                raise ValueError(
                    f"expected whole {name}, received a DTensor, sharded over processes. A head's scores are made "
                    "after the model has run: keep what holds the head gathered until then, fully_shard(model, "
                    f"reshard_after_forward=False), and do not shard the head by itself; or pass {name}.full_tensor()."
                )
        if self.transform is not None and not callable(self.transform):
            raise TypeError(
                f"expected a transform that can be called, received {type(self.transform).__name__} "
                f"({self.transform!r}). Pass SoftCap(cap), Scale(factor), or None."
            )
        if self.keys.device != self.queries.device:
            raise ValueError(
                f"expected queries and keys on one device, received {self.queries.device} and {self.keys.device}. Pass "
                "keys.to(queries.device), or the reverse."
            )
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

    def __repr__(self) -> str:
        """Shapes, dtypes and devices, in one line."""
        return one_line(self)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, outcomes)."""
        return self.queries.shape[0], self.keys.shape[0]

    def dense(self) -> Scores:
        """The score matrix, in float32 or better: at tau = 0.005 a bfloat16 product is off by 0.4 in the exponent."""
        with torch.autocast(self.queries.device.type, enabled=False):
            return dense_scores(self.queries, self.keys, self.bias, self.transform)

    @property
    def device(self) -> torch.device:
        """Where the scores will be."""
        return self.queries.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the score matrix: float32 or better."""
        return work_dtype(self.queries, self.keys)

    @property
    def requires_grad(self) -> bool:
        """Whether gradient flows to what the scores are products of."""
        return any(x is not None and x.requires_grad for x in (self.queries, self.keys, self.bias))

    def is_transpose_of(self, other: "LinearScores") -> bool:
        """Whether the two are one matrix read by rows and by columns: each one's queries are the other's keys."""
        return self._mirrors(other, self.keys, other.keys)

    def is_share_of_transpose_of(self, other: "LinearScores") -> bool:
        """Whether they would be, if all processes' rows were here: each one's queries are the other's local keys."""
        if self.local_keys is None or other.local_keys is None:
            return False
        return self._mirrors(other, self.local_keys, other.local_keys)

    def _mirrors(self, other: "LinearScores", ours: Features, theirs: Features) -> bool:
        plain = self.bias is None and other.bias is None and self.transform is other.transform is None
        return plain and _same(self.queries, theirs) and _same(ours, other.queries)

    def select(self, rows: slice | RowIndex) -> "LinearScores":
        """The scores of some of the rows."""
        return replace(self, queries=self.queries[rows], local_keys=None)

    def detached(self) -> "LinearScores":
        """The same scores, through which no gradient flows."""
        bias = None if self.bias is None else self.bias.detach()
        local = None if self.local_keys is None else self.local_keys.detach()
        return LinearScores(self.queries.detach(), self.keys.detach(), bias, self.transform, local)


def _same(a: Tensor, b: Tensor) -> bool:
    """One tensor, or two views of the same numbers (a frozen host's rows are detached each by itself)."""
    if a is b:
        return True
    return (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
    )
