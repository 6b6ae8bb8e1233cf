"""The contract of a temperature predictor."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor, nn

from dro_temp import functional as F
from dro_temp._checks import check_bounds, check_kind, check_tensor
from dro_temp._typing import Features, PerRow, RowIndex, Scores
from dro_temp.interfaces import blockwise
from dro_temp.interfaces.frozen_head import Decoder, FrozenHead
from dro_temp.interfaces.rows import Rows, Support
from dro_temp.interfaces.scores import at_least_float32
from dro_temp.interfaces.staged import refuse_other_sizes
from dro_temp.interfaces.substitution import Substituted
from dro_temp.interfaces.summary import Summary
from dro_temp.kernels.products import whole_rows

Readable: TypeAlias = Literal["features", "index", "support", "summary"]

_PASS: dict[str, str] = {
    "features": "features=...",
    "index": "index=...",
    "support": "support=dro_temp.Support(scores)",
    "summary": "support=dro_temp.Support(scores)",
}
_TYPED: dict[str, str] = {
    "features": "features",
    "index": "index",
    "support": "scores (support=dro_temp.Support(logits))",
    "summary": "scores (support=dro_temp.Support(logits))",
}


@dataclass(frozen=True)
class Reading:
    """What a predictor reads of a block of rows; only what it declared in `reads` is there."""

    n: int
    features: Features | None = None
    index: RowIndex | None = None
    support: Support | None = None
    summary: Summary | None = None


class TemperaturePredictor(nn.Module, ABC):
    """Maps each row to a temperature in [tau_min, tau_max].

    A leaf declares what it reads and writes `raw`; nothing it returns can leave the bounds. What is read is
    detached: a predictor is trained by the loss, and never moves the host through its input.

    Args:
        tau_min: lower bound, > 0.
        tau_max: upper bound, > tau_min.
    """

    #: What `raw` needs: any of "features", "index", "summary" (statistics and projections of the scores), and
    #: "support" (the scores themselves).
    reads: frozenset[Readable] = frozenset({"features"})
    #: True if the predictor updates itself from each row's own gradient dF/dtau (see `observe`).
    observes_gradient: bool = False

    def __init__(self, *, tau_min: float, tau_max: float) -> None:
        super().__init__()
        check_bounds(tau_min, tau_max)
        self.tau_min, self.tau_max = float(tau_min), float(tau_max)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        refuse_other_sizes([(prefix, self)], state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]

    @abstractmethod
    def raw(self, reading: Reading) -> PerRow:
        """One unbounded number per row; `bound` maps it into [tau_min, tau_max]."""

    def bound(self, raw: PerRow) -> PerRow:
        """The map into the bounds; smooth unless a leaf says otherwise."""
        return F.sigmoid_between(raw, self.tau_min, self.tau_max)

    def extra_repr(self) -> str:
        """The bounds."""
        return f"tau_min={self.tau_min}, tau_max={self.tau_max}"

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
        summary: Summary | None = None,
        shape: torch.Size | None = None,
        within: Callable[[], Any] | None = None,
    ) -> Tensor:
        """Temperatures, in float32 or better.

        Args:
            features: [... d], any leading dimensions.
            index: [...] sample numbers.
            support: scores of the rows over their support.
            summary: statistics of those scores; made from `support` if None.
            shape: [...] shape of the result; taken from the others if None.
            within: called, and its result returned, in place of all this: for a kernel that asks for temperatures
                block by block (`predict`), and is to do so where hooks on the predictor have prepared its
                parameters (FSDP gathers them) and see what was computed with them.

        Returns:
            [...] temperatures in [tau_min, tau_max].

        Raises:
            ValueError: something that this predictor reads was not given.
        """
        if within is not None:
            return within()  # type: ignore[no-any-return]
        return self.predict(features, index=index, support=support, summary=summary, shape=shape)

    @final
    def predict(
        self,
        features: Tensor | None = None,
        *,
        index: Tensor | None = None,
        support: Support | None = None,
        summary: Summary | None = None,
        shape: torch.Size | None = None,
    ) -> Tensor:
        """As calling the predictor, without its hooks: one of several blocks of a call."""
        for name, x in (("features", features), ("index", index)):
            if x is not None:
                check_tensor(name, x)
        if features is not None and features.dim() == 0:
            raise ValueError(
                "expected features of shape [..., d], received one number. Pass one vector for each row."
            )
        if support is not None:
            check_kind("support", support, Support, "Pass Support(scores).")
        if summary is None and support is not None and "summary" in self.reads:
            summary = Summary(support.scores, support.mask)
        given = {"features": features, "index": index, "support": support, "summary": summary}
        missing = sorted(name for name in self.reads if given[name] is None)
        if missing:
            wanted = ", ".join(dict.fromkeys(_TYPED[name] for name in sorted(self.reads)))
            absent = dict.fromkeys("scores" if name in ("summary", "support") else name for name in missing)
            # Logits that were given as features are the likely mistake.
            mistaken = "scores" in absent and features is not None and "features" not in self.reads
            unread = "features, which it does not read, and " if mistaken else ""
            raise ValueError(
                f"expected {wanted} for {type(self).__name__}, received {unread}no {' and no '.join(absent)}. Pass "
                f"{', '.join(dict.fromkeys(_PASS[name] for name in missing))}; in an Objective the host's Rows carry "
                "them (index: call objective(..., index=index))."
            )
        if shape is None:
            shape = _leading_shape(features, index, summary, support)
        n = math.prod(shape)  # Size.numel() would take it for a constant in a graph
        reading = Reading(
            n,
            features=None
            if features is None
            else whole_rows(features.detach().reshape(n, features.shape[-1])),
            index=None if index is None else index.reshape(-1),
            support=support,
            summary=summary,
        )
        return self.bound(at_least_float32(self.raw(reading))).reshape(shape)

    def decoder(self, head: FrozenHead) -> Decoder:
        """Temperatures of a frozen head's rows: made once, called for every token that is generated.

        A leaf may prepare whatever a head that does not change lets it prepare. The parameters of the moment
        count; make another one after they have changed.

        Args:
            head: the head.

        Raises:
            ValueError: the predictor is in training mode and works otherwise in it (dropout), or knows samples by
                their numbers.
        """
        self._refuse_training()
        reads = self.reads
        if "index" in reads:
            raise ValueError(
                f"expected a predictor of features or scores, received {type(self).__name__}, which knows samples "
                "by their numbers in a data set: what is generated has none. Train a TempNet."
            )

        @torch.no_grad()
        def temperatures(queries: Features, scores: Scores) -> PerRow:
            tau: Tensor = self(
                queries if "features" in reads else None,
                support=Support(scores) if "support" in reads else None,
                summary=head.summary(queries, scores) if "summary" in reads else None,
                shape=scores.shape[:1],
            )
            return tau

        return temperatures

    def _refuse_training(self) -> None:
        changed = [part for part in self.modules() if part.training and _works_otherwise_in_training(part)]
        if changed:
            raise ValueError(
                f"expected {type(self).__name__} in evaluation mode, received one in training mode, whose "
                f"{type(changed[0]).__name__} would change the temperatures. Call predictor.eval() first."
            )

    @property
    def reads_scores(self) -> bool:
        """True if temperatures can only be known once scores are: the predictor then works inside the sweep."""
        return not self.reads.isdisjoint({"support", "summary"})

    @final
    def of(self, rows: Rows) -> PerRow:
        """Temperatures of rows: hands over exactly what `reads` declares.

        Rows that do not count get some temperature, whatever they hold. Many rows are taken a block at a time,
        and what a block needs for its gradient is computed again in backward: no buffer grows with the batch.
        """
        rows = rows.inert_where_invalid() if self.reads_scores else rows.inert_but_for_scores()
        # In a graph, all rows are one block: where to cut would depend on their number.
        few = torch.compiler.is_compiling() or len(rows) <= blockwise.BLOCK_OF_ROWS
        one_block = few or "features" not in self.reads or next(self.parameters(), None) is None
        if self.reads_scores or one_block or torch._C._are_functorch_transforms_active():
            (features,), given = self._arguments(rows)
            tau: Tensor = self(features, **given)
            return tau
        in_blocks: Tensor = self(within=lambda: self._in_blocks(rows))
        return in_blocks

    def _in_blocks(self, rows: Rows) -> PerRow:
        ours = self.whole_parameters()

        def predict(block: slice, parameters: tuple[Tensor, ...]) -> PerRow:
            (features,), given = self._arguments(rows.select(block))
            with Substituted(ours, parameters):
                return self.predict(features, **given)

        return blockwise.predicted_in_blocks(predict, len(rows), ours, random=self.training)

    @final
    def whole_parameters(self) -> tuple[Tensor, ...]:
        """All parameters, for a kernel that takes gradients of them by itself.

        Raises:
            ValueError: one of them is sharded, and is not gathered where this is called.
        """
        for name, parameter in self.named_parameters():
            if hasattr(parameter, "full_tensor"):
                raise ValueError(
                    f"expected the parameters of {type(self).__name__} gathered in its forward, received {name} "
                    "sharded there. Shard the predictor as one, fully_shard(predictor), or with the objective, "
                    "fully_shard(objective), and not its parts."
                )
        return tuple(self.parameters())

    def _arguments(self, rows: Rows) -> tuple[tuple[Features | None], dict[str, Any]]:
        """What `forward` is called with."""
        support = rows.support if self.reads_scores else None
        return (rows.features,), {"index": rows.index, "support": support, "shape": rows.target.shape}


def _works_otherwise_in_training(part: nn.Module) -> bool:
    """Whether a module computes something else in training mode, or may do so for all that is known of it."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
        return part.dropout > 0
    own = (nn.modules.batchnorm._NormBase, nn.RReLU)
    return isinstance(part, own) or not type(part).__module__.startswith(("torch.nn.", "dro_temp."))


def _leading_shape(
    features: Tensor | None, index: Tensor | None, summary: Summary | None, support: Support | None
) -> torch.Size:
    if features is not None:
        return features.shape[:-1]
    if index is not None:
        return index.shape
    if summary is not None:
        return summary.shape
    if support is not None:
        return support.scores.shape[:-1]
    raise ValueError(
        "expected features, index, support or shape, to know for how many rows temperatures are wanted; "
        "received none of them. Pass shape=torch.Size([n])."
    )
