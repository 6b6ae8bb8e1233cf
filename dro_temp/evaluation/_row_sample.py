"""Rows of one view, drawn at random from batches that come one after the other."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dro_temp._typing import PerRow
from dro_temp.evaluation._batches import SCORES_AT_A_TIME, HostBatch, rows_of, weight_of
from dro_temp.evaluation._progress import shown
from dro_temp.evaluation._whole_support import KeyBank
from dro_temp.functional.resampling import generator
from dro_temp.interfaces import HostAdapter, LinearScores, Rows, TemperaturePredictor


@dataclass(frozen=True)
class Part:
    """Rows of one batch that are in the sample so far.

    Args:
        lot: the random number of each, float64, on the CPU.
        rows: their scores and targets.
        tau: their predicted temperatures.
    """

    lot: Tensor
    rows: Rows
    tau: PerRow

    def select(self, kept: Tensor) -> "Part":
        """Those of the rows for which `kept` is True."""
        number = kept.nonzero()[:, 0].to(self.tau.device)
        return Part(self.lot[kept], self.rows.select(number), self.tau[number])


class RowSample:
    """A number of rows without replacement, from a stream of unknown length: those of the smallest lots.

    Scores that are products stay products. Only where a host gives a matrix are scores held, of at most twice as many
    rows as are wanted.

    Args:
        view: their name, for errors.
        predictor: of the temperatures, which are predicted from the rows of a batch, as in training.
        size: rows wanted; all, where there are no more.
        seed: of the lots, which belong to rows in their order, however these are cut into batches.
    """

    def __init__(self, view: str, predictor: TemperaturePredictor, size: int, seed: int) -> None:
        self.view, self.predictor, self.size = view, predictor, size
        self.available = 0
        self._parts: list[Part] = []
        self._highest = 1.0
        self._chance = generator(seed)
        self._bank = KeyBank(view)

    def offer(self, rows: Rows) -> None:
        """Take some of the rows of a batch."""
        # A pair that is a batch of its own has others in the data set.
        alone = not (rows.target_in_support or self.predictor.reads_scores)
        number = (weight_of(rows) > 0 if alone else rows.valid).nonzero()[:, 0]
        self.available += len(number)
        lot = torch.rand(len(number), generator=self._chance, dtype=torch.float64)
        taken = lot <= self._highest
        chosen = rows.select(number[taken.to(number.device)])
        tau = _temperatures(self.predictor, chosen) if len(chosen) else chosen.target.new_zeros(0).float()
        if not rows.target_in_support:
            chosen = self._bank.placed(chosen, rows)
        if len(chosen):
            self._parts.append(Part(lot[taken], self._sharing(chosen), tau))
        if sum(len(part.lot) for part in self._parts) > 2 * self.size:
            self._drop()

    def _drop(self) -> None:
        """Keep the rows of the smallest lots only."""
        lots = torch.cat([torch.empty(0, dtype=torch.float64), *(part.lot for part in self._parts)])
        if len(lots) > self.size:
            self._highest = float(lots.kthvalue(self.size).values)
            kept = [(part, part.lot <= self._highest) for part in self._parts]
            self._parts = [part.select(inside) for part, inside in kept if bool(inside.any())]

    def _sharing(self, rows: Rows) -> Rows:
        """The same rows, with the keys of the rows before where they are equal: they are held once."""
        before = self._parts[-1].rows.scores if self._parts else None
        ours = rows.scores
        if not isinstance(before, LinearScores) or not isinstance(ours, LinearScores):
            return rows
        if ours.keys.data_ptr() == before.keys.data_ptr() or not torch.equal(ours.keys, before.keys):
            return rows
        return replace(rows, scores=replace(ours, keys=before.keys))

    def drawn(self) -> tuple[list[Rows], PerRow]:
        """The rows, each over its whole support, and their temperatures."""
        self._drop()
        if not self._parts:
            raise ValueError(
                f"expected batches with at least one row that counts in view {self.view!r}, received none. Pass "
                "batches that are not empty, with labels other than -100."
            )
        rows = [part.rows for part in self._parts]
        if not rows[0].target_in_support:
            rows = [self._bank.widened(rows)]
        return rows, torch.cat([part.tau for part in self._parts])


def _temperatures(predictor: TemperaturePredictor, rows: Rows) -> PerRow:
    if not predictor.reads_scores:
        # As `of` does, which would take a pair without others in its batch for one that does not count.
        tau: PerRow = predictor(rows.features, index=rows.index, shape=rows.target.shape)
        return tau
    step = max(1, SCORES_AT_A_TIME // max(1, rows.scores.shape[1]))
    blocks = (slice(start, start + step) for start in range(0, len(rows), step))
    return torch.cat([predictor.predict(rows.select(block)) for block in blocks])


def sampled_rows(
    host: HostAdapter, batches: Iterable[HostBatch], samples: dict[str, RowSample], title: str | None
) -> None:
    """One sweep over the data, of which every view's sample takes its rows."""
    for batch in shown(batches, title):
        rows = rows_of(host, batch)
        for view, sample in samples.items():
            sample.offer(rows[view])
