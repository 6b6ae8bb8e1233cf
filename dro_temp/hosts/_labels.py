"""Rows with one label each, some of which are to be ignored."""

import torch
from torch import Tensor

from dro_temp.interfaces import LinearScores, Rows

IGNORE = -100  # torch's own label for "does not count"


def labelled(
    scores: Tensor | LinearScores,
    labels: Tensor,
    features: Tensor | None,
    index: Tensor | None = None,
    *,
    advice: str = "Give the model as many outputs as there are classes, or renumber the labels.",
) -> Rows:
    """Rows with these labels; those of -100 do not count.

    Args:
        scores: one row per label.
        labels: outcome numbers, or -100.
        features: for predictors, or None.
        index: sample numbers, or None.
        advice: what to type where a label is out of range.
    """
    classes = scores.shape[1]
    counted = labels != IGNORE
    if not torch.compiler.is_compiling() and _all_counted(labels, counted, classes, advice):
        return Rows(scores, labels, features, index)
    return Rows(scores, labels.masked_fill(~counted, 0), features, index, weight=counted.float())


def _all_counted(labels: Tensor, counted: Tensor, classes: int, advice: str) -> bool:
    """Whether no label is ignored; raise where one is out of range."""
    wrong = counted & ((labels < 0) | (labels >= classes))
    some_wrong, all_counted = torch.stack([wrong.any(), counted.all()]).tolist()  # one wait for the device
    if some_wrong:
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"expected labels from 0 to {classes - 1}, or {IGNORE} to ignore a row, received {int(labels[row])} "
            f"in row {row}. {advice}"
        )
    return bool(all_counted)
