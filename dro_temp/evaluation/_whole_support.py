"""Rows of pairs, whose support is the whole data set."""

from dataclasses import replace

import torch
from torch import Tensor

from dro_temp.evaluation._batches import weight_of
from dro_temp.interfaces import LinearScores, Rows


class KeyBank:
    """The keys of all batches, one after the other, and the place of each batch among them.

    Args:
        view: whose keys, for errors.
    """

    def __init__(self, view: str) -> None:
        self.view = view
        self._batches: list[LinearScores] = []
        self._size = 0

    def placed(self, chosen: Rows, batch: Rows) -> Rows:
        """Some rows of a batch, with targets that are places among all keys; the batch's keys are taken in."""
        scores = batch.scores
        if not isinstance(scores, LinearScores):
            raise TypeError(
                f"expected scores that are products (LinearScores) in view {self.view!r}, whose rows have the whole "
                f"data set for their support, received a matrix of the scores of one batch, {list(scores.shape)}. "
                "Pass an Objective of a host of pairs, such as hosts.TwoTower."
            )
        moved = replace(chosen, target=chosen.target.long() + self._size)
        self._size += scores.shape[1]
        self._batches.append(scores.select(slice(0)))
        return moved

    def widened(self, parts: list[Rows]) -> Rows:
        """Those rows, scored against all keys that were taken in."""
        first = self._batches[0]
        biases = [scores.bias for scores in self._batches if scores.bias is not None]
        scores = LinearScores(
            torch.cat([_queries(rows) for rows in parts]),
            torch.cat([scores.keys for scores in self._batches]),
            torch.cat(biases) if biases else None,
            first.transform,
        )
        weight = torch.cat([weight_of(rows) for rows in parts])
        target = torch.cat([rows.target for rows in parts])
        return Rows(scores, target, target_in_support=False, weight=weight)


def _queries(rows: Rows) -> Tensor:
    assert isinstance(rows.scores, LinearScores)
    return rows.scores.queries
