"""A random sample of the rows of one view, from batches that come one after the other."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dro_temp._typing import PerRow
from dro_temp.evaluation._batches import SCORES_AT_A_TIME, weight_of
from dro_temp.functional.resampling import generator
from dro_temp.interfaces import LinearScores, Rows, TemperaturePredictor


class Part(NamedTuple):
    """Rows of one batch that are in the sample so far, and their predicted temperatures."""

    key: Tensor  # a random number of each, float64, on the CPU: the sample is the rows of the smallest keys
    rows: Rows
    tau: PerRow


class RowSample:
    """A number of rows without replacement, from a stream of unknown length.

    Scores that are products stay products. Score matrices, where a host gives these, are stored for at most twice as
    many rows as are wanted. Rows of pairs are scored against the keys of all batches, so these are stored.
    Temperatures are predicted from the rows of a batch, as in training. How rows are cut into batches does not change
    which are drawn.
    """

    def __init__(self, view: str, predictor: TemperaturePredictor, size: int, seed: int) -> None:
        self.view, self.predictor, self.size = view, predictor, size
        self.available = 0
        self._parts: list[Part] = []
        self._highest = 1.0
        self._rng = generator(seed)
        self._batches: list[LinearScores] = []  # without queries: the keys of all pairs

    def offer(self, rows: Rows) -> None:
        """Sample from the rows of a batch."""
        # A pair that is a batch of its own has others in the data set.
        single = not (rows.target_in_support or self.predictor.reads_scores)
        number = (weight_of(rows) > 0 if single else rows.valid).nonzero()[:, 0]
        self.available += len(number)
        key = torch.rand(len(number), generator=self._rng, dtype=torch.float64)
        taken = key <= self._highest
        chosen = rows.select(number[taken.to(number.device)])
        placed = chosen if rows.target_in_support else self._placed_in_all_batches(chosen)
        if len(chosen):
            self._parts.append(Part(key[taken], self._sharing_keys(placed), self._temperatures(chosen)))
        if sum(len(part.key) for part in self._parts) > 2 * self.size:
            self._drop()

    def drawn(self) -> tuple[list[Rows], PerRow]:
        """The rows, each over its whole support, and their temperatures."""
        self._drop()
        if not self._parts:
            raise ValueError(
                f"expected batches with at least one row that counts in view {self.view!r}, received none. Pass "
                "batches that are not empty, with labels other than -100."
            )
        rows = [part.rows for part in self._parts]
        if self._batches:
            rows = [self._over_all_keys(rows)]
        return rows, torch.cat([part.tau for part in self._parts])

    def _drop(self) -> None:
        """Drop all rows but those of the smallest keys."""
        keys = torch.cat([torch.empty(0, dtype=torch.float64), *(part.key for part in self._parts)])
        if len(keys) <= self.size:
            return
        self._highest = float(keys.kthvalue(self.size).values)
        parts, self._parts = self._parts, []
        for key, rows, tau in parts:
            kept = (key <= self._highest).nonzero()[:, 0]
            if len(kept):
                index = kept.to(tau.device)
                self._parts.append(Part(key[kept], rows.select(index), tau[index]))

    def _temperatures(self, rows: Rows) -> PerRow:
        if not self.predictor.reads_scores:
            # As `predict` does, which would treat a pair without others in its batch as invalid.
            tau: PerRow = self.predictor(rows.features, index=rows.index, shape=rows.target.shape)
            return tau
        step = max(1, SCORES_AT_A_TIME // max(1, rows.scores.shape[1]))
        blocks = (slice(start, start + step) for start in range(0, len(rows), step))
        return torch.cat([self.predictor.predict(rows.select(block)) for block in blocks])

    def _sharing_keys(self, rows: Rows) -> Rows:
        """The same rows; keys that equal those of the previous rows are stored once."""
        before, own = self._parts[-1].rows.scores if self._parts else None, rows.scores
        if not isinstance(before, LinearScores) or not isinstance(own, LinearScores):
            return rows
        copied = own.keys.data_ptr() != before.keys.data_ptr() and torch.equal(own.keys, before.keys)
        return replace(rows, scores=replace(own, keys=before.keys)) if copied else rows

    def _placed_in_all_batches(self, pairs: Rows) -> Rows:
        """Pairs of a batch, with targets that count over the keys of all batches, which are stored."""
        scores = pairs.scores
        if not isinstance(scores, LinearScores):
            raise TypeError(
                f"expected products (LinearScores) in view {self.view!r}, since the support is the whole data set, "
                f"received a matrix of scores {list(scores.shape)}. Pass an Objective of a host of pairs, such as "
                "hosts.TwoTower."
            )
        before = sum(batch.shape[1] for batch in self._batches)
        self._batches.append(scores.select(slice(0)))
        return replace(pairs, target=pairs.target.long() + before)

    def _over_all_keys(self, parts: list[Rows]) -> Rows:
        """Those pairs, scored against the keys of all batches."""
        biases = [scores.bias for scores in self._batches if scores.bias is not None]
        scores = LinearScores(
            torch.cat([rows.scores.queries for rows in parts if isinstance(rows.scores, LinearScores)]),
            torch.cat([scores.keys for scores in self._batches]),
            torch.cat(biases) if biases else None,
            self._batches[0].transform,
        )
        target, weight = torch.cat([r.target for r in parts]), torch.cat([weight_of(r) for r in parts])
        return Rows(scores, target, target_in_support=False, weight=weight)
