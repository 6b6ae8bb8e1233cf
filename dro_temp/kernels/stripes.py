"""Stripes of pair scores: made, and turned into gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.budget import block_rows
from dro_temp.kernels.gradients import dense_like
from dro_temp.kernels.pair_passes import ColumnSums, RowSums
from dro_temp.kernels.passes import NOT_AN_OUTCOME, row_groups
from dro_temp.kernels.products import AddUp, Scorer, gradient_dtype, product, work_dtype
from dro_temp.kernels.workspace import borrow, give_back


class PairPasses(Protocol):
    """The passes over a stripe of scores; the module `pair_passes` is one."""

    def scorer(self, queries: Tensor, keys: Tensor) -> Scorer:
        """What makes the scores."""

    @property
    def add_up(self) -> AddUp:
        """What adds up the rows of a stripe."""

    def sum_rows(self, scores: Scores, tau: PerRow) -> RowSums:
        """Sums of each row; the scores stay."""

    def sum_columns_(self, scores: Scores, tau: Tensor, sums: ColumnSums) -> None:
        """Sums of each column, added to what there is; the scores stay."""

    def couple_(
        self,
        scores: Scores,
        tau_rows: PerRow,
        top_rows: PerRow,
        share_rows: PerRow,
        tau_columns: Tensor,
        top_columns: Tensor,
        share_columns: Tensor,
    ) -> Scores:
        """Gradient with respect to the scores, in their place."""


@dataclass(frozen=True)
class RowsOfPairs:
    """Sums of a block's rows over all columns but their own.

    Args:
        own: score of each row with its own column.
        top: largest other score.
        total: sum of the others' weights.
        excess: mean of the others' scores under the weights, minus `top`.
        kept: all scores, the own ones overwritten, or None.
    """

    own: Tensor
    top: Tensor
    total: Tensor
    excess: Tensor
    kept: Scores | None

    def log_sums(self, tau: PerRow) -> PerRow:
        """Relative to the own score."""
        return (self.top - self.own) / tau + self.total.log()

    def slope(self, tau: PerRow) -> PerRow:
        """Their derivative with respect to tau."""
        return -(self.excess + (self.top - self.own)) / tau.square()


@dataclass(frozen=True)
class PairBlock:
    """A sweep without its tensors."""

    offset: int
    passes: PairPasses
    records: bool  #: whether autograd does

    def stripes(self, queries: Tensor, keys: Tensor, *, kept: bool) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and the columns that are their own; more rows at a time if the scores are kept anyway."""
        n, work = queries.shape[0], work_dtype(queries, keys)
        step = block_rows(n, keys.shape[0], work, queries.device, kept=kept)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            yield rows, torch.arange(rows.start, rows.stop, device=queries.device)[:, None] + self.offset

    def sum_rows(
        self,
        queries: Tensor,
        keys: Tensor,
        tau: PerRow,
        *,
        keep: str | None,
        also: Callable[[Scores], None] = lambda scores: None,
    ) -> RowsOfPairs:
        """Sweep once.

        Args:
            queries: [n d].
            keys: [m d].
            tau: temperature of each row.
            keep: the purpose (see `borrow`) of scores that are kept for a second sweep; None: none are.
            also: called with some rows of scores at a time, while they are in the processor's cache.
        """
        n, m, work = len(queries), len(keys), tau.dtype
        score = self.passes.scorer(queries, keys)
        height = block_rows(n, m, work, queries.device) if keep is None else n
        buffer = borrow(keep or "scores", height, m, queries, work)
        own, top, total, excess = (queries.new_empty(n, dtype=work) for _ in range(4))
        for rows, column in self.stripes(queries, keys, kept=keep is not None):
            out = buffer[: rows.stop - rows.start] if keep is None else buffer[rows]
            scores = score(queries[rows], out)
            own[rows] = scores.gather(1, column).squeeze(1)
            scores.scatter_(1, column, NOT_AN_OUTCOME)
            for group in row_groups(scores):
                at = slice(rows.start + group.start, rows.start + group.stop)
                found = self.passes.sum_rows(scores[group], tau[at])
                top[at], total[at], excess[at] = found.top, found.total, found.excess
                also(scores[group])
        if keep is None:
            give_back("scores", buffer)
        return RowsOfPairs(own, top, total, excess, None if keep is None else buffer)


@dataclass(frozen=True)
class Coupling:
    """What turns scores into the gradient with respect to them; `own` is that of each row's own score."""

    own: Tensor
    tau_rows: Tensor
    top_rows: Tensor
    share_rows: Tensor
    tau_columns: Tensor
    top_columns: Tensor
    share_columns: Tensor

    def gradients(
        self, block: PairBlock, queries: Tensor, keys: Tensor, kept: Scores | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of queries and keys; scores that were kept are consumed, else they are computed again."""
        n, work = queries.shape[0], self.tau_rows.dtype
        narrow = keys.to(gradient_dtype(keys))
        to_queries, to_keys = dense_like(queries, work), dense_like(keys, work)
        if not n:
            to_keys.zero_()  # no stripe will come to overwrite it
        for rows, coupled in self._coupled(block, queries, keys, kept):
            product(coupled, narrow, to_queries[rows])
            first = rows.start == 0
            block.passes.add_up(to_keys, coupled, queries[rows].to(work), narrow.dtype, first=first)
        return to_queries.to(queries.dtype), to_keys.to(keys.dtype)

    def pull(self, block: PairBlock, queries: Tensor, keys: Tensor, kept: Scores | None) -> Tensor:
        """The gradient of the queries alone."""
        narrow = keys.to(gradient_dtype(keys))
        to_queries = dense_like(queries, self.tau_rows.dtype)
        for rows, coupled in self._coupled(block, queries, keys, kept):
            product(coupled, narrow, to_queries[rows])
        return to_queries.to(queries.dtype)

    def _coupled(
        self, block: PairBlock, queries: Tensor, keys: Tensor, kept: Scores | None
    ) -> Iterator[tuple[slice, Scores]]:
        """Gradient with respect to the scores, stripe by stripe."""
        n, m, work = queries.shape[0], keys.shape[0], self.tau_rows.dtype
        score = block.passes.scorer(queries, keys)
        height = block_rows(n, m, work, queries.device) if kept is None else 0
        buffer = borrow("scores", height, m, queries, work)
        for rows, column in block.stripes(queries, keys, kept=kept is not None):
            out = buffer[: rows.stop - rows.start]
            coupled = score(queries[rows], out) if kept is None else kept[rows]
            for group in row_groups(coupled):
                self._couple(
                    block.passes, coupled[group], slice(rows.start + group.start, rows.start + group.stop)
                )
            yield rows, coupled.scatter_(1, column, self.own[rows, None])
        give_back("scores", buffer)

    def _couple(self, passes: PairPasses, scores: Scores, rows: slice) -> Scores:
        return passes.couple_(
            scores,
            self.tau_rows[rows],
            self.top_rows[rows],
            self.share_rows[rows],
            self.tau_columns,
            self.top_columns,
            self.share_columns,
        )
