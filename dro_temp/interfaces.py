"""Read this file first: what passes between the parts, and the three contracts.

A **host** (`HostAdapter`) turns a batch into `Rows`: scores over a support of outcomes, one target each. A
**predictor** (`TemperaturePredictor`) maps each row to a temperature. A **loss** (`RobustLoss`) maps rows and
temperatures to one value per row. What they remember from step to step is `Staged`: proposed in forward,
written when an optimizer step was really taken.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from dro_temp import functional as F
from dro_temp._checks import check_bounds, check_positive
from dro_temp._typing import Features, Mask, PerRow, RowIndex, RowMask, Scores

Readable: TypeAlias = Literal["features", "index", "support"]


def _at_least_float32(x: Tensor) -> Tensor:
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
            scores = _at_least_float32(self.queries) @ _at_least_float32(self.keys).T
            if self.bias is not None:
                scores = scores + self.bias
            return scores if self.transform is None else self.transform(scores)

    def detached(self) -> "LinearScores":
        """The same scores, through which no gradient flows."""
        bias = None if self.bias is None else self.bias.detach()
        return LinearScores(self.queries.detach(), self.keys.detach(), bias, self.transform)


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

    @property
    def size(self) -> int:
        """Number of outcomes in every row's support."""
        return self.scores.shape[1] if self.outcomes is None else self.outcomes


@dataclass(frozen=True)
class Rows:
    """Rows of scores with one target each: the one shape that every host makes and every loss takes.

    Args:
        scores: a score matrix, or `LinearScores`.
        target: column of each row's own outcome.
        features: what a predictor may read of each row (hidden state, embedding), width d.
        index: the sample's number in the data set, or None.
        target_in_support: True for classes and tokens (the target is one of the outcomes), False for pairs
            (the adversary weighs only the others).
        weight: weight of each row in the mean, >= 0; rows of weight zero (padding, ignored labels) are inert.

    Raises:
        ValueError: shapes that do not belong together.
        TypeError: targets or sample numbers that are not integers.

    Example:
        >>> rows = Rows(torch.randn(4, 10), torch.tensor([0, 3, 9, 1]))
        >>> len(rows), rows.support_size
        (4, 10)
    """

    scores: Scores | LinearScores
    target: RowIndex
    features: Features | None = None
    index: RowIndex | None = None
    target_in_support: bool = True
    weight: PerRow | None = None

    def __post_init__(self) -> None:
        """Check shapes and integer types; values are checked where they are made or used."""
        if len(self.scores.shape) != 2:
            raise ValueError(
                f"expected scores of shape [n, m], received {list(self.scores.shape)}. "
                "Flatten leading dimensions first, for example logits.flatten(0, -2)."
            )
        n = self.scores.shape[0]
        for name in ("target", "features", "index", "weight"):
            value = getattr(self, name)
            if value is None:
                continue
            if value.dim() != (2 if name == "features" else 1) or value.shape[0] != n:
                wanted = f"[{n}, d]" if name == "features" else f"[{n}]"
                raise ValueError(
                    f"expected {name} of shape {wanted}, one per row of scores, received {list(value.shape)}. "
                    f"Flatten {name} together with the scores."
                )
            integer = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
            if name in ("target", "index") and not integer:
                raise TypeError(
                    f"expected {name} of an integer dtype, received {value.dtype}. Pass {name}.long()."
                )

    def __len__(self) -> int:
        """Number of rows."""
        return self.scores.shape[0]

    @property
    def support_size(self) -> int:
        """Number of outcomes that the adversary may weigh in this batch, m."""
        return self.scores.shape[1] - (0 if self.target_in_support else 1)

    @property
    def dense_scores(self) -> Scores:
        """The score matrix in float32 or better; a product of `LinearScores` is computed at every call."""
        if isinstance(self.scores, LinearScores):
            return self.scores.dense()
        return _at_least_float32(self.scores)

    @property
    def mask(self) -> Mask | None:
        """True inside the support; None where every outcome is in it."""
        if self.target_in_support:
            return None
        inside = torch.ones(self.scores.shape, dtype=torch.bool, device=self.target.device)
        return inside.scatter(1, self.target.long()[:, None], False)

    @property
    def margins(self) -> Scores:
        """Scores minus the target's score, in float32 or better."""
        return F.margins(self.dense_scores, self.target.long())

    @property
    def support(self) -> Support:
        """What a predictor that reads scores may see: detached, and without the target's identity."""
        return Support(self.dense_scores.detach(), self.mask, self.support_size)

    @property
    def valid(self) -> RowMask:
        """True for the rows that count: positive weight and a support that is not empty."""
        if self.support_size == 0:
            return torch.zeros_like(self.target, dtype=torch.bool)
        if self.weight is None:
            return torch.ones_like(self.target, dtype=torch.bool)
        return self.weight > 0

    def dense(self) -> "Rows":
        """The same rows with the score matrix computed, so that it is computed once."""
        return replace(self, scores=self.dense_scores)

    def detached(self) -> "Rows":
        """The same rows, through which no gradient flows to the host."""
        scores = self.scores.detached() if isinstance(self.scores, LinearScores) else self.scores.detach()
        return replace(
            self, scores=scores, features=None if self.features is None else self.features.detach()
        )

    def inert_where_invalid(self) -> "Rows":
        """The same rows with harmless numbers in those that do not count.

        A product with a zero weight would not do: zero times NaN is NaN.
        """
        if self.weight is None and self.support_size > 0:
            return self
        out = ~self.valid
        return replace(
            self,
            scores=self.dense_scores.masked_fill(out[:, None], 0.0),
            target=self.target.masked_fill(out & (self.target < 0), 0),
            features=None if self.features is None else self.features.masked_fill(out[:, None], 0.0),
            index=None if self.index is None else self.index.masked_fill(out, 0),
        )


class Staged(nn.Module, ABC):
    """Memory that forward reads and an optimizer step writes.

    A second forward, a step that a gradient scaler skipped, validation: none of them may change it. A leaf
    calls `stage` in forward or backward and fills in `write`.
    """

    #: Names of the buffers or parameters that remember; they are never rounded below float32.
    memory: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._staged: list[tuple[Tensor, ...]] = []

    @property
    def expects_proposals(self) -> bool:
        """True if every training step proposes something; a step without is then an error."""
        return True

    @property
    def staged(self) -> list[tuple[Tensor, ...]]:
        """What was proposed since the last commit, oldest first; never part of the saved state."""
        return self._staged

    @property
    def pending(self) -> bool:
        """True while there are proposals that were neither committed nor discarded."""
        return bool(self.staged)

    def stage(self, *proposal: Tensor) -> None:
        """Propose; all proposals between two commits have the same parts."""
        self.staged.append(tuple(part.detach() for part in proposal))

    @abstractmethod
    def write(self, *parts: Tensor) -> None:
        """Write the concatenated parts of all proposals; none are passed if nothing was proposed."""

    @final
    @torch.no_grad()
    def commit(self) -> None:
        """Write what was proposed; a parameter step was taken."""
        self.write(*(torch.cat(parts) for parts in zip(*self.staged, strict=True)))
        self.staged.clear()

    @final
    def discard(self, keep: int = 0) -> None:
        """Forget what was proposed, except the oldest `keep`; the step was skipped, or the forward failed."""
        del self.staged[keep:]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Staged":
        # model.bfloat16() must not round the memory: near 100, bfloat16 numbers are 0.5 apart.
        before = {name: getattr(self, name) for name in self.memory if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            now = getattr(self, name)
            if now.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, exact.to(now.device))
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.memory:
            loaded, ours = state_dict.get(prefix + name), getattr(self, name, None)
            if loaded is not None and ours is not None and loaded.shape != ours.shape:
                raise ValueError(
                    f"expected the memory of {ours.numel()} samples at {prefix}{name}, received one of "
                    f"{loaded.numel()}. Build {type(self).__name__}({loaded.numel()}, ...) for the data set that it "
                    "was saved with, or delete the key and load with strict=False to start afresh."
                )
        self.discard()
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without proposals: those belong to the forward that made them."""
        return {**self.__dict__, "_staged": []}


def staged_modules(modules: Iterable[nn.Module]) -> list[Staged]:
    """Those of the modules that hold staged memory.

    Example:
        >>> import dro_temp as dt
        >>> loss = dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(100))
        >>> staged_modules(loss.modules())
        [LogMovingAverage(100)]
    """
    return [module for module in modules if isinstance(module, Staged)]


@dataclass(frozen=True)
class Reading:
    """What a predictor reads of a block of rows; only what it declared in `reads` is there."""

    n: int
    features: Features | None = None
    index: RowIndex | None = None
    support: Support | None = None


class TemperaturePredictor(nn.Module, ABC):
    """Maps each row to a temperature in [tau_min, tau_max].

    A leaf declares what it reads and writes `raw`; nothing it returns can leave the bounds. What is read is
    detached: a predictor is trained by the loss, and never moves the host through its input.

    Args:
        tau_min: lower bound, > 0.
        tau_max: upper bound, > tau_min.
    """

    #: What `raw` needs: any of "features", "index", "support".
    reads: frozenset[Readable] = frozenset({"features"})
    #: True if the predictor updates itself from each row's own gradient dF/dtau (see `observe`).
    observes_gradient: bool = False

    def __init__(self, *, tau_min: float, tau_max: float) -> None:
        super().__init__()
        check_bounds(tau_min, tau_max)
        self.tau_min, self.tau_max = float(tau_min), float(tau_max)

    @abstractmethod
    def raw(self, reading: Reading) -> PerRow:
        """One unbounded number per row; `bound` maps it into [tau_min, tau_max]."""

    def bound(self, raw: PerRow) -> PerRow:
        """The map into the bounds; smooth unless a leaf says otherwise."""
        return F.sigmoid_between(raw, self.tau_min, self.tau_max)

    def start_prototypes(self, others: Features) -> None:
        """Start from features of the other views, if this predictor compares rows with them; else do nothing."""

    def observe(self, index: RowIndex, gradient: PerRow) -> None:
        """Take note of each row's own dF/dtau, unscaled by reduction; only for `observes_gradient`."""
        raise NotImplementedError(f"{type(self).__name__} declares observes_gradient but does not observe")

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(
        self,
        features: Tensor | None = None,
        *,
        index: Tensor | None = None,
        support: Support | None = None,
        shape: torch.Size | None = None,
    ) -> Tensor:
        """Temperatures, in float32 or better.

        Args:
            features: [... d], any leading dimensions.
            index: [...] sample numbers.
            support: scores of the rows over their support.
            shape: [...] shape of the result; taken from the others if None.

        Returns:
            [...] temperatures in [tau_min, tau_max].

        Raises:
            ValueError: something that this predictor reads was not given.
        """
        given = {"features": features, "index": index, "support": support}
        missing = sorted(name for name in self.reads if given[name] is None)
        if missing:
            raise ValueError(
                f"expected {', '.join(sorted(self.reads))} for {type(self).__name__}, received no "
                f"{' and no '.join(missing)}. Pass {', '.join(f'{name}=...' for name in missing)}; in an "
                "Objective the host's Rows carry them (index: call objective(..., index=index))."
            )
        if shape is None:
            shape = _leading_shape(features, index, support)
        reading = Reading(
            shape.numel(),
            features=None
            if features is None
            else features.detach().reshape(shape.numel(), features.shape[-1]),
            index=None if index is None else index.reshape(-1),
            support=support,
        )
        return self.bound(_at_least_float32(self.raw(reading))).reshape(shape)

    @final
    def of(self, rows: Rows) -> PerRow:
        """Temperatures of rows: hands over exactly what `reads` declares.

        Rows that do not count get some temperature, whatever they hold.
        """
        rows = rows.inert_where_invalid()
        tau: Tensor = self(
            rows.features,
            index=rows.index,
            support=rows.support if "support" in self.reads else None,
            shape=rows.target.shape,
        )
        return tau


def _leading_shape(features: Tensor | None, index: Tensor | None, support: Support | None) -> torch.Size:
    if features is not None:
        return features.shape[:-1]
    if index is not None:
        return index.shape
    if support is not None:
        return support.scores.shape[:-1]
    raise ValueError(
        "expected features, index, support or shape, to know for how many rows temperatures are wanted; "
        "received none of them. Pass shape=torch.Size([n])."
    )


class RobustLoss(nn.Module, ABC):
    """Maps rows and their temperatures to one value per row; reduction belongs to `Objective`.

    The base checks its arguments, keeps everything in float32 or better, and makes rows of weight zero inert.
    A leaf writes `values`.
    """

    @abstractmethod
    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """One value per row. Scores of rows that do not count are zero, and their values are dropped."""

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, rows: Rows, tau: Tensor | float) -> PerRow:
        """Value of each row; zero, with zero gradient, where a row does not count.

        Args:
            rows: scores and targets.
            tau: temperature of each row, > 0, or one for all.
        """
        with torch.autocast(rows.target.device.type, enabled=False):
            rows = rows.dense().inert_where_invalid()
            if isinstance(tau, float | int):
                check_positive("tau", tau)
            tau = torch.as_tensor(tau, device=rows.target.device)
            if tau.dim() > 1 or (tau.dim() == 1 and len(tau) != len(rows)):
                raise ValueError(
                    f"expected tau of shape [{len(rows)}] or a number, received shape {list(tau.shape)}. "
                    "Pass predictor.of(rows)."
                )
            tau = _at_least_float32(tau).to(rows.dense_scores.dtype).expand(len(rows))
            tau = tau.masked_fill(~rows.valid, 1.0)
            return self.values(rows, tau).masked_fill(~rows.valid, 0.0)


class HostAdapter(nn.Module, ABC):
    """Turns a batch into `{view: Rows}` by running the user's own model.

    Args:
        frozen: True to leave the model's weights alone: it runs in eval mode, without gradient, and
            `Objective.param_groups` leaves it out.
    """

    #: Names of the kinds of rows that the host makes, for example ("image", "text").
    views: ClassVar[tuple[str, ...]]

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.frozen = frozen
        self.objective_trains = True

    @abstractmethod
    def rows(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """Rows of each view, in the order of `views`."""

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, *args: Any, **batch: Any) -> dict[str, Rows]:
        """Run the model on a batch."""
        if not self.frozen:
            return self.rows(*args, **batch)
        with torch.no_grad():
            rows = self.rows(*args, **batch)
        # Scores that are still a product to come would meet trainable keys (a head's weight) later.
        return {view: r.detached() for view, r in rows.items()}

    def train(self, mode: bool = True) -> "HostAdapter":
        """A frozen host stays in eval mode; `objective_trains` says what was asked for."""
        self.objective_trains = mode
        super().train(mode and not self.frozen)
        return self


__all__ = [
    "HostAdapter",
    "LinearScores",
    "Reading",
    "RobustLoss",
    "Rows",
    "Staged",
    "Support",
    "TemperaturePredictor",
    "staged_modules",
]
