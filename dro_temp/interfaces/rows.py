"""Rows of scores with one target each: the output of every host and the input of every loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from dro_temp import _faults
from dro_temp import functional as F
from dro_temp._checks import (
    check_callable,
    check_count,
    check_flag,
    check_floats,
    check_integers,
    check_matrix,
    check_tensor,
    extremes,
    first_wrong,
    values_can_be_read,
)
from dro_temp._pytree import map_tensors, pytree
from dro_temp._tensors import LOW, at_least_float32
from dro_temp._typing import Features, Mask, PerRow, RowIndex, RowMask, Scores
from dro_temp.functional.groups import UNGROUPED, excluded_by_group, support_sizes
from dro_temp.functional.statistics import NOT_AN_OUTCOME

#: Tolerance for the sum of a row's probabilities: the rounding of half precision. Multi-hot labels are further off.
ROUNDING = 1e-2

T = TypeVar("T")


@pytree(static=("transform", "score_dtype"))
@dataclass(frozen=True)
class LinearScores:
    r"""Scores that are products of queries and keys, `queries @ keys.T + bias`, not yet computed.

    A language-model head, a classifier's last layer and the other tower of a pair are all of this form, which
    is what lets one kernel serve them.

    Args:
        queries: one vector per row.
        keys: one vector per outcome.
        bias: one number per outcome.
        transform: elementwise function of the scores: `SoftCap`, `Scale`, or another `ScoreTransform`; a plain
            function is accepted as well, but its scores are always computed as a matrix.
        local_keys: this process's own keys, if `keys` were gathered from several processes.
        score_dtype: precision of scores in memory, where kernels on a GPU store a block of them. None: float32 or
            better. torch.bfloat16 is a tenth faster for a vocabulary of 128,000, and puts an error of $2^{-9} |s|/\tau$
            into each exponent: it is for temperatures near one. Sums stay in float32.

    Raises:
        ValueError, TypeError: shapes, devices or precisions that do not fit.

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
    score_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("queries", "keys", "bias"):
            value = getattr(self, name)
            if value is None and name == "bias":
                continue
            check_floats(name, value)
            if hasattr(value, "full_tensor"):
                raise ValueError(
                    f"expected whole {name}, received a DTensor, sharded over processes. A head's scores are made "
                    "after the model has run: keep what holds the head gathered until then, fully_shard(model, "
                    f"reshard_after_forward=False), and do not shard the head by itself; or pass {name}.full_tensor()."
                )
        if self.transform is not None:
            check_callable("transform", self.transform)
        if self.score_dtype not in (None, self.dtype, *LOW):
            raise ValueError(
                f"expected score_dtype=None, torch.bfloat16 or torch.float16, received {self.score_dtype!r}. "
                f"Leave it out for scores in {self.dtype}."
            )
        if self.keys.device != self.queries.device:
            raise ValueError(
                f"expected queries and keys on one device, received {self.queries.device} and {self.keys.device}. Pass "
                "keys.to(queries.device), or the reverse."
            )
        for name in ("bias", "local_keys"):
            value = getattr(self, name)
            if value is not None and value.device != self.queries.device:
                raise ValueError(
                    f"expected {name} on {self.queries.device}, as the queries, received it on {value.device}. Pass "
                    f"{name}.to(queries.device)."
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

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, outcomes)."""
        return self.queries.shape[0], self.keys.shape[0]

    def dense(self) -> Scores:
        """The score matrix, in float32 or better: at tau = 0.005 a bfloat16 product is off by 0.4 in the exponent."""
        dtype = self.dtype
        with torch.autocast(self.queries.device.type, enabled=False):
            scores = self.queries.to(dtype) @ self.keys.to(dtype).T
            scores = scores if self.bias is None else scores + self.bias
            return scores if self.transform is None else self.transform(scores)

    @property
    def device(self) -> torch.device:
        """Device of the scores."""
        return self.queries.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the score matrix: float32 or better."""
        both = torch.promote_types(self.queries.dtype, self.keys.dtype)
        return torch.promote_types(both, torch.float32)

    @property
    def requires_grad(self) -> bool:
        """Whether gradient flows to what the scores are products of."""
        return any(x is not None and x.requires_grad for x in (self.queries, self.keys, self.bias))

    def transposed(self) -> "LinearScores":
        """The scores of the keys with the queries, without bias and transform."""
        return _derived(
            self, queries=self.keys, keys=self.queries, bias=None, transform=None, score_dtype=None
        )

    def is_transpose_of(self, other: "LinearScores") -> bool:
        """Whether the two are one matrix read by rows and by columns: the queries of each are the other's keys."""
        return self._mirrors(other, self.keys, other.keys)

    def is_share_of_transpose_of(self, other: "LinearScores") -> bool:
        """Whether they are this process's rows of such a matrix: the queries of each are the other's local keys."""
        if self.local_keys is None or other.local_keys is None:
            return False
        return self._mirrors(other, self.local_keys, other.local_keys)

    def _mirrors(self, other: "LinearScores", ours: Features, theirs: Features) -> bool:
        plain = self.bias is None and other.bias is None and self.transform is other.transform is None
        return plain and same_memory(self.queries, theirs) and same_memory(ours, other.queries)

    def select(self, rows: slice | RowIndex) -> "LinearScores":
        """The scores of some of the rows."""
        _check_selection(rows)
        return _derived(self, queries=self.queries[rows], local_keys=None)

    def detached(self) -> "LinearScores":
        """The same scores, through which no gradient flows."""
        return _derived(self, **_of_each(self, Tensor.detach, "queries", "keys", "bias", "local_keys"))


#: Where rows keep `has_weight`, with the version of the weights that it was computed from.
_COUNTS = "_counts"
#: Where rows with groups keep `support_sizes`, with the versions of what they were computed from.
_SIZES = "_sizes"


def _may_be_kept(*parts: Tensor) -> bool:
    """Whether what is computed from these tensors may be kept until one of them changes."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.is_inference_mode_enabled()
        or any(part.is_inference() for part in parts)
        or _faults.is_capturing()  # a replay finds other values
    )


def _versions(*parts: Tensor) -> tuple[int, ...]:
    return tuple(part._version for part in parts)


def _derived(x: T, **changes: Any) -> T:
    """As `dataclasses.replace`, without `__post_init__`: the tensors are derived from checked ones."""
    if torch.compiler.is_compiling():
        return replace(x, **changes)  # type: ignore[type-var]
    new = object.__new__(type(x))
    # Fields alone: a subclass may have cached something else.
    new.__dict__.update({name: getattr(x, name) for name in x.__dataclass_fields__}, **changes)  # type: ignore[attr-defined]
    if "weight" not in changes and _COUNTS in vars(x):
        vars(new)[_COUNTS] = vars(x)[_COUNTS]
    return new


def _of_each(x: Any, function: Callable[[Any], Any], *names: str) -> dict[str, Any]:
    """The function of each of these fields; None stays."""
    values = {name: getattr(x, name) for name in names}
    return {name: None if value is None else function(value) for name, value in values.items()}


def _check_selection(rows: Any) -> None:
    if not isinstance(rows, slice | list) and getattr(rows, "ndim", 0) != 1:
        received = f"a tensor of shape {list(rows.shape)}" if isinstance(rows, Tensor) else repr(rows)
        raise TypeError(
            f"expected rows as a slice, or a vector of row numbers, received {received}. Write "
            "rows.select(slice(0, 8)), or rows.select(torch.tensor([0, 2]))."
        )


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same memory (the rows of a frozen host are detached separately)."""
    if a is b:
        return True
    same_layout = a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    return same_layout and a.data_ptr() == b.data_ptr()


@pytree(static=("outcomes",))
@dataclass(frozen=True)
class Support:
    """The outcomes that the adversary may weigh, and their scores.

    Args:
        scores: one row of scores per row.
        mask: True where an outcome belongs to the row's support; None: all do.
        outcomes: number of outcomes in every row's support; that of the columns if None.
    """

    scores: Scores
    mask: Mask | None = None
    outcomes: int | None = None

    def __post_init__(self) -> None:
        check_matrix("scores", self.scores)
        if self.mask is not None:
            check_tensor("mask", self.mask)
            if self.mask.dtype != torch.bool or self.mask.shape != self.scores.shape:
                raise ValueError(
                    f"expected a boolean mask of shape {list(self.scores.shape)}, that of the scores, received "
                    f"{self.mask.dtype} of shape {list(self.mask.shape)}. Pass mask.bool().expand_as(scores)."
                )
        if self.outcomes is not None:
            check_count("outcomes", self.outcomes, minimum=0)

    @property
    def size(self) -> int:
        """Number of outcomes in every row's support."""
        return self.scores.shape[1] if self.outcomes is None else self.outcomes


@pytree(static=("target_in_support",))
@dataclass(frozen=True)
class Rows:
    """Rows of scores with one target each: the output of every host and the input of every loss.

    Args:
        scores: a score matrix, or `LinearScores`.
        target: column of each row's own outcome.
        features: what a predictor may read of each row (hidden state, embedding), width d.
        index: the sample's number in the data set, or None.
        target_in_support: True for classes and tokens (the target is one of the outcomes), False for pairs
            (the adversary weighs only the others).
        weight: weight of each row in the mean, >= 0; rows of weight zero (padding, ignored labels) are inert.
        target_distribution: probability that each outcome is the target, rows that sum to one (Mixup, CutMix,
            label smoothing); `target` is then its most probable outcome. None: `target` alone.
        group: number of each row's group, together with `column_group`: columns of the row's own group are not its
            outcomes (false negatives: duplicates, other positives), but for its target. A negative number is nobody's
            group; a row of `functional.LEFT_OUT`, -2, has no outcomes.
        column_group: number of each column's group, [m]. A column of `functional.LEFT_OUT` is in no row's support. Of
            rows that are one matrix read by rows and by columns, each has the other's groups.

    Raises:
        ValueError: shapes or devices that do not match, or a target distribution where targets are not outcomes or
            beside groups; groups of rows without those of columns.
        TypeError: a value that is not a tensor, targets or sample numbers that are not integers, scores that are.

    Example:
        >>> rows = Rows(torch.randn(4, 10), torch.tensor([0, 3, 9, 1]))
        >>> len(rows), rows.support_size
        (4, 10)
        >>> captions = torch.tensor([7, 7, 8])  # the first two pairs have one caption
        >>> pairs = Rows(
        ...     torch.randn(3, 3), torch.arange(3), target_in_support=False, group=captions, column_group=captions
        ... )
        >>> pairs.support_sizes
        tensor([1, 1, 2])
    """

    scores: Scores | LinearScores
    target: RowIndex
    features: Features | None = None
    index: RowIndex | None = None
    target_in_support: bool = True
    weight: PerRow | None = None
    target_distribution: Scores | None = None
    group: RowIndex | None = None
    column_group: Tensor | None = None

    def __post_init__(self) -> None:
        """Check types, shapes and devices; see `check_values` for what is in them."""
        if not isinstance(self.scores, LinearScores):
            check_matrix("scores", self.scores)
        if not isinstance(self.target_in_support, bool):
            check_flag("target_in_support", self.target_in_support)
        per_row = self.scores.queries if isinstance(self.scores, LinearScores) else self.scores
        n, device = per_row.shape[0], per_row.device
        for name in ("target", "features", "index", "weight", "target_distribution"):
            value = getattr(self, name)
            if value is None and name != "target":
                continue
            if name in ("target", "index"):
                check_integers(name, value)
            elif not isinstance(value, Tensor):
                check_tensor(name, value)
            # A table may be in host memory, the numbers with it.
            if value.device != device and name != "index":
                raise ValueError(
                    f"expected {name} on {device}, as the scores, received it on {value.device}. Pass "
                    f"{name}.to(scores.device)."
                )
            if name == "target_distribution":
                self._check_distribution(value)
            elif value.dim() != (2 if name == "features" else 1) or value.shape[0] != n:
                shape = f"[{n}, d]" if name == "features" else f"[{n}]"
                raise ValueError(
                    f"expected {name} of shape {shape}, one per row of scores, received {list(value.shape)}. "
                    f"Flatten {name} together with the scores."
                )
        if self.group is not None or self.column_group is not None:
            self._check_groups(n, device)

    def _check_groups(self, n: int, device: torch.device) -> None:
        for name, size in (("group", n), ("column_group", self.scores.shape[1])):
            value, per = getattr(self, name), "row" if name == "group" else "column"
            if value is None:
                raise ValueError(
                    f"expected group and column_group together, received no {name}. Pass the number of each {per}'s "
                    "group, -1 for one that is alone."
                )
            check_integers(name, value)
            if value.device != device or tuple(value.shape) != (size,):
                raise ValueError(
                    f"expected {name} of shape [{size}] on {device}, one for each {per} of the scores, received shape "
                    f"{list(value.shape)} on {value.device}. Pass the number of each {per}'s group, -1 for one that is "
                    "alone."
                )
        if self.target_distribution is not None:
            raise ValueError(
                "expected one target per row beside groups, received a target_distribution. Leave one of them out."
            )

    def check_values(self) -> None:
        """Raise on a target out of range, a negative weight, or probabilities that do not sum to one.

        Rows that do not count may hold anything. Values on a device are not checked (`values_can_be_read`). Losses
        called with rows check them; an `Objective` checks the rows of each view once.

        Raises:
            ValueError: such a value, with the number of its row.
        """
        if not values_can_be_read(self.target, self.weight, self.target_distribution):
            return
        if self.weight is not None:
            low, high = extremes(self.weight)
            if not (low >= 0 and high < math.inf):
                wrong = ~((self.weight >= 0) & (self.weight < math.inf))
                row, value = first_wrong(wrong, self.weight)
                raise ValueError(
                    f"expected weights that are finite and >= 0, received {value} in row {row}. Pass 0 to leave a "
                    "row out."
                )
        low, high = extremes(self.target)
        columns = self.scores.shape[1]
        if not (low >= 0 and high < columns):
            wrong = ((self.target < 0) | (self.target >= columns)) & self.valid
            if bool(wrong.any()):
                row, value = first_wrong(wrong, self.target)
                raise ValueError(
                    f"expected targets from 0 to {columns - 1}, one of the columns of the scores, received {value} in "
                    f"row {row}. Pass weight=0 for a row that is not to count, or renumber the targets."
                )
        if self.target_distribution is not None:
            check_distribution("target_distribution", self.target_distribution, self.valid)

    def _check_distribution(self, distribution: Scores) -> None:
        check_floats("target_distribution", distribution)
        if not self.target_in_support:
            raise ValueError(
                "expected one target per row where targets are not among the outcomes (pairs), received a "
                "target_distribution. Leave it out, or pass target_in_support=True."
            )
        if tuple(distribution.shape) != tuple(self.scores.shape):
            raise ValueError(
                f"expected target_distribution of shape {list(self.scores.shape)}, that of the scores, received "
                f"{list(distribution.shape)}. Give every row a probability of each outcome."
            )

    def __len__(self) -> int:
        return self.target.shape[0]

    @property
    def support_size(self) -> int:
        """Number of outcomes in each row's support, m."""
        scores = self.scores
        columns = scores.keys.shape[0] if isinstance(scores, LinearScores) else scores.shape[1]
        return columns - (0 if self.target_in_support else 1)

    @property
    def support_sizes(self) -> RowIndex | None:
        """Number of outcomes in each row's own support, without what groups exclude; None without groups."""
        if self.group is None:
            return None
        parts = self._grouping
        if not _may_be_kept(*parts):
            return support_sizes(*parts, target_in_support=self.target_in_support)
        versions = _versions(*parts)
        known: tuple[tuple[int, ...], RowIndex] | None = vars(self).get(_SIZES)
        if known is None or known[0] != versions:
            sizes = support_sizes(*parts, target_in_support=self.target_in_support)
            known = vars(self)[_SIZES] = versions, sizes
        return known[1]

    @property
    def _grouping(self) -> tuple[RowIndex, Tensor, RowIndex]:
        """What `support_sizes` are computed from."""
        assert self.group is not None
        assert self.column_group is not None
        return self.group, self.column_group, self.target

    def log_support_sizes(self, like: Tensor) -> PerRow:
        """Log of `support_sizes`, of rows with groups, with the dtype of `like`; 0 for a row without outcomes."""
        sizes = self.support_sizes
        assert sizes is not None
        return sizes.clamp(min=1).to(like.dtype).log()

    def has_mirrored_groups(self, other: "Rows") -> bool:
        """Whether the groups of rows and columns are those of columns and rows of the other's, in one process.

        In several processes the columns' groups are gathered, as `LinearScores.local_keys` are.
        """
        ours, theirs = (self.group, self.column_group), (other.column_group, other.group)
        if any(x is None for x in (*ours, *theirs)):
            return False
        if isinstance(self.scores, LinearScores) and self.scores.local_keys is not None:
            return True
        return all(
            same_memory(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None
        )

    @property
    def excluded(self) -> Mask | None:
        """True where groups exclude a column from a row's support; None without groups. Materialised, [n m]."""
        if self.group is None or self.column_group is None:
            return None
        return excluded_by_group(self.group, self.column_group, self.target)

    @property
    def dense_scores(self) -> Scores:
        """The score matrix in float32 or better; a product of `LinearScores` is computed at every call.

        NaN and infinity in the queries of rows of weight zero are replaced by 0: such rows have gradient 0, and the
        gradient of the keys would be 0 times NaN, which is NaN.
        """
        scores = self.scores
        if not isinstance(scores, LinearScores):
            return at_least_float32(scores)
        if self.weight is not None:
            unused = ~self.has_weight[:, None] & ~scores.queries.isfinite()
            scores = _derived(scores, queries=scores.queries.masked_fill(unused, 0.0))
        return scores.dense()

    @property
    def mask(self) -> Mask | None:
        """True inside the support; None where every outcome is in it."""
        excluded = self.excluded
        if self.target_in_support:
            return None if excluded is None else ~excluded
        inside = torch.ones(self.scores.shape, dtype=torch.bool, device=self.target.device)
        inside = inside if excluded is None else ~excluded
        return inside.scatter(1, self.target.long()[:, None], False)

    @property
    def margins(self) -> Scores:
        """Scores minus the target's score, or its mean under the target distribution, in float32 or better."""
        if self.target_distribution is None:
            return F.margins(self.dense_scores, self.target.long())
        return F.expected_margins(self.dense_scores, self.target_distribution)

    @property
    def support(self) -> Support:
        """Inputs of a predictor that reads scores: detached, and without the target's identity."""
        scores, excluded = self.dense_scores.detach(), self.excluded
        if excluded is not None:
            # A network may read the scores as they are: what groups exclude is to it what cannot happen.
            scores = scores.masked_fill(excluded, NOT_AN_OUTCOME)
        return Support(scores, self.mask, self.support_size)

    @property
    def valid(self) -> RowMask:
        """True for the rows that count: positive weight and a support that is not empty."""
        if self.support_size == 0:
            return torch.zeros_like(self.target, dtype=torch.bool)
        if self.group is not None:
            sizes = self.support_sizes
            assert sizes is not None
            return sizes > 0 if self.weight is None else (sizes > 0) & self.has_weight
        return torch.ones_like(self.target, dtype=torch.bool) if self.weight is None else self.has_weight

    @property
    def has_weight(self) -> RowMask:
        """True for rows of positive weight, including a pair that is alone in its batch and has an empty support."""
        weight = self.weight
        if weight is None:
            return torch.ones_like(self.target, dtype=torch.bool)
        if not _may_be_kept(weight):
            return weight > 0
        # Asked for half a dozen times in a step, each of which would be a launch.
        known: tuple[int, RowMask] | None = vars(self).get(_COUNTS)
        if known is None or known[0] != weight._version:
            known = vars(self)[_COUNTS] = weight._version, weight > 0
        return known[1]

    def dense(self) -> "Rows":
        """The same rows with the score matrix computed once."""
        return _derived(self, scores=self.dense_scores)

    def select(self, rows: slice | RowIndex) -> "Rows":
        """Some of the rows, by a slice (views), or by row numbers or a mask (copies)."""
        _check_selection(rows)
        scores = self.scores.select(rows) if isinstance(self.scores, LinearScores) else self.scores[rows]
        names = ("target", "features", "index", "weight", "target_distribution", "group")
        selected = _derived(self, scores=scores, **_of_each(self, lambda x: x[rows], *names))
        if _SIZES in vars(self):
            sizes = self.support_sizes
            assert sizes is not None
            vars(selected)[_SIZES] = _versions(*selected._grouping), sizes[rows]
        return selected

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Rows":
        """The same rows on a device.

        Raises:
            TypeError: a dtype, which would convert row and sample numbers as well.
        """
        if isinstance(device, torch.dtype):
            raise TypeError(
                f"expected a device, received {device}, which would convert targets and sample numbers as well. "
                "Make the model, or its outputs, of another precision before they become Rows."
            )
        return map_tensors(lambda x: x.to(device, non_blocking=non_blocking), self)

    def pin_memory(self) -> "Rows":
        """The same rows in pinned memory; a `DataLoader` with `pin_memory=True` calls it."""
        return map_tensors(torch.Tensor.pin_memory, self)

    def detached(self) -> "Rows":
        """The same rows, through which no gradient flows to the host."""
        scores = self.scores.detached() if isinstance(self.scores, LinearScores) else self.scores.detach()
        return _derived(self, scores=scores, **_of_each(self, Tensor.detach, "features"))

    def inert_where_invalid(self) -> "Rows":
        """The same rows with zeros where the weight is zero: multiplying would not do, since 0 times NaN is NaN."""
        if self.weight is None and self.support_size > 0 and self.group is None:
            return self
        scores, valid = self.scores, self.valid[:, None]
        if isinstance(scores, LinearScores):
            # Before the product as well: see `dense_scores`; and the transform cannot overflow.
            scores = _derived(scores, queries=torch.where(valid, scores.queries, 0.0)).dense()
        scores = at_least_float32(torch.where(valid, scores, 0.0))
        return _derived(
            self, scores=scores, **self._inert("target", "features", "index", "target_distribution")
        )

    def inert_products(self) -> "Rows":
        """As `inert_where_invalid`, of scores that are products, which stay so; of the same shape, on any device."""
        assert isinstance(self.scores, LinearScores)
        valid, changes = self.valid, {}
        scores = _derived(self.scores, queries=torch.where(valid[:, None], self.scores.queries, 0.0))
        if self.group is not None:
            # A row that groups leave no outcomes does not count either; as a row of weight zero it has some.
            weight = valid.to(scores.dtype) if self.weight is None else self.weight * valid
            changes = {"group": torch.where(valid, self.group, UNGROUPED), "weight": weight}
        return _derived(self, scores=scores, **self._inert("target", "features", "index"), **changes)

    def inert_features_and_index(self) -> tuple[Features | None, RowIndex | None]:
        """Features and sample numbers, zero where a row's weight is zero.

        A pair that is alone in its batch, with an empty support, keeps its features and its number: they do not
        depend on the rest of the batch.
        """
        inert = self._inert("features", "index")
        return inert["features"], inert["index"]

    def _inert(self, *names: str) -> dict[str, Any]:
        """Fields, zero where a row's weight is zero."""
        if self.weight is None:
            return {name: getattr(self, name) for name in names}
        counts = self.has_weight
        return _of_each(
            self, lambda x: torch.where(counts if x.dim() == 1 else counts[:, None], x, 0), *names
        )


def check_distribution(name: str, distribution: Scores, counts: RowMask | None = None) -> None:
    """Raise unless the rows that count (None: all) hold probabilities; their values must be readable."""
    total = distribution.detach().sum(1)
    # The sum may hide a negative probability, which is checked by itself.
    (least, _), (low, high) = extremes(distribution), extremes(total)
    if least >= 0 and low >= 1 - ROUNDING and high <= 1 + ROUNDING:
        return
    wrong = ~((total - 1).abs() <= ROUNDING) | ~(distribution >= 0).all(1)
    wrong = wrong if counts is None else wrong & counts
    if bool(wrong.any()):
        row, value = first_wrong(wrong, total)
        raise ValueError(
            f"expected {name} that are probabilities, which sum to 1 in every row, received a row (number {row}) of "
            f"sum {value:.4g} and least entry {float(distribution[row].min()):.4g}. Divide by the sum; labels of "
            "several classes at once (multi-hot) are not served: train those with binary_cross_entropy_with_logits."
        )
