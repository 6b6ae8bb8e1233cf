"""Stripes of pair scores: made, kept from forward to backward, and turned into gradients."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.budget import block_rows
from dro_temp.kernels.pair_passes import ColumnSums, RowSums
from dro_temp.kernels.passes import NOT_AN_OUTCOME, row_groups
from dro_temp.kernels.products import accumulate_product, gradient_dtype, product, score_dtype, work_dtype
from dro_temp.kernels.workspace import borrow, give_back


class PairPasses(Protocol):
    """The elementwise passes over a stripe of scores; the module `pair_passes` is one."""

    def sum_rows(self, scores: Scores, tau: PerRow, weights: Scores, spare: Scores) -> RowSums:
        """Sums of each row; the scores stay."""

    def sum_columns_(
        self, scores: Scores, tau: Tensor, sums: ColumnSums, weights: Scores, spare: Scores
    ) -> None:
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
        spare: Scores,
    ) -> Scores:
        """Gradient with respect to the scores, in their place."""


@dataclass(frozen=True)
class PairBlock:
    """A sweep without its tensors."""

    offset: int
    passes: PairPasses
    records: bool  #: whether autograd does

    def stripes(self, queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and the columns that are their own."""
        n, work = queries.shape[0], work_dtype(queries, keys)
        step = block_rows(n, keys.shape[0], work, queries.device)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            yield rows, torch.arange(rows.start, rows.stop, device=queries.device)[:, None] + self.offset

    def score(self, queries: Tensor, keys: Tensor, rows: slice, own: Tensor, out: Scores) -> Scores:
        """Scores of a stripe, in `out`; a row's own column is no outcome."""
        scores = out[: rows.stop - rows.start]
        product(queries[rows], keys.T, scores)
        return scores.scatter_(1, own, NOT_AN_OUTCOME)


class KeptWeights:
    """Weights of both sides, kept from forward to backward; those of columns relative to their stripe's tops."""

    def __init__(self, n: int, m: int, like: Tensor, dtype: torch.dtype) -> None:
        self.rows = borrow("row weights", n, m, like, dtype)
        self.columns = borrow("column weights", n, m, like, dtype)
        self.tops: list[Tensor] = []

    def give_back(self) -> None:
        """Not needed any more."""
        give_back("row weights", self.rows)
        give_back("column weights", self.columns)


@dataclass(frozen=True)
class Coupling:
    """What turns scores into the gradient with respect to them."""

    tau_rows: Tensor
    top_rows: Tensor
    share_rows: Tensor
    tau_columns: Tensor
    top_columns: Tensor
    share_columns: Tensor

    def gradients(
        self, block: PairBlock, queries: Tensor, keys: Tensor, kept: KeptWeights | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of queries and keys, from kept weights or from scores computed again."""
        n, m, work = queries.shape[0], keys.shape[0], self.tau_rows.dtype
        wide, narrow = keys.to(score_dtype(keys)), keys.to(gradient_dtype(keys))
        step = block_rows(n, m, work, queries.device)
        out = borrow("scores", step, m, queries, work)
        spare = borrow("spare", row_groups(out)[0].stop if n else 0, m, queries, work)
        to_queries = torch.empty_like(queries, dtype=work)
        # The first stripe overwrites it; without rows there is none.
        to_keys = torch.empty_like(keys, dtype=work) if n else torch.zeros_like(keys, dtype=work)
        tops = iter(() if kept is None else kept.tops)
        for rows, mine in block.stripes(queries, keys):
            coupled = out[: rows.stop - rows.start]
            if kept is None:
                block.score(queries, wide, rows, mine, out)
            for group in row_groups(coupled):
                at = slice(rows.start + group.start, rows.start + group.stop)
                if kept is None:
                    self._couple(block.passes, coupled[group], at, spare[: group.stop - group.start])
                else:
                    self._recall(kept, next(tops), at, coupled[group])
            product(coupled, narrow, to_queries[rows])
            first = rows.start == 0
            accumulate_product(to_keys, coupled.T, queries[rows].to(work), narrow.dtype, first=first)
        give_back("scores", out)
        give_back("spare", spare)
        return to_queries.to(queries.dtype), to_keys.to(keys.dtype)

    def _couple(self, passes: PairPasses, scores: Scores, rows: slice, spare: Scores) -> Scores:
        return passes.couple_(
            scores,
            self.tau_rows[rows],
            self.top_rows[rows],
            self.share_rows[rows],
            self.tau_columns,
            self.top_columns,
            self.share_columns,
            spare,
        )

    def _recall(self, kept: KeptWeights, tops: Tensor, rows: slice, out: Scores) -> None:
        # Column weights are relative to the tops of their time.
        late = ((tops - self.top_columns) / self.tau_columns).exp()
        torch.mul(kept.rows[rows], self.share_rows[rows, None], out=out)
        out.addcmul_(kept.columns[rows], self.share_columns * late)
