"""Rows with one label each, some of which are to be ignored, or with a distribution of labels."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dro_temp import functional as F
from dro_temp._checks import check_integers, check_tensor, first_wrong, values_can_be_read
from dro_temp.hosts._index import as_index
from dro_temp.interfaces import LinearScores, Rows
from dro_temp.interfaces.rows import check_distribution

IGNORE = -100  # torch's own label for "does not count"


def labelled(
    scores: Tensor | LinearScores,
    labels: Tensor,
    features: Tensor | None,
    index: Any = None,
    *,
    smoothing: float = 0.0,
    advice: str = "Give the model as many outputs as there are classes, or renumber the labels.",
) -> Rows:
    """Rows with these labels; those of -100 do not count.

    Args:
        scores: one row per label.
        labels: outcome numbers [n], or -100; or probabilities of the outcomes [n m].
        features: for predictors, or None.
        index: sample numbers, also as a list or an array, or None.
        smoothing: share of the target that all outcomes get alike; probabilities stay as they are.
        advice: what to type where a label is out of range.
    """
    check_tensor("labels", labels)
    index = as_index(index, labels.device)
    if len(labels.shape) not in (1, 2) or labels.shape[0] != scores.shape[0]:
        raise ValueError(
            f"expected labels of shape [{scores.shape[0]}], or probabilities of shape {list(scores.shape)}, "
            f"received {list(labels.shape)}. Pass one label for each row of scores."
        )
    if labels.is_floating_point() and labels.dim() == 2:
        return _distributed(scores, labels, features, index)
    check_integers("labels", labels)
    classes = scores.shape[1]
    counted = labels != IGNORE
    if torch.compiler.is_compiling() or not _all_counted(labels, counted, classes, advice):
        rows = Rows(scores, labels.masked_fill(~counted, 0), features, index, weight=counted.float())
    else:
        rows = Rows(scores, labels, features, index)
    return _smoothed(rows, smoothing) if smoothing else rows


def _smoothed(rows: Rows, smoothing: float) -> Rows:
    spread = F.smoothed_distribution(rows.target, rows.scores.shape[1], smoothing)
    return replace(rows, target_distribution=spread)


def _distributed(
    scores: Tensor | LinearScores, labels: Tensor, features: Tensor | None, index: Tensor | None
) -> Rows:
    """Rows whose labels are distributions, as Mixup and CutMix make them."""
    if labels.shape[1] != scores.shape[1]:
        raise ValueError(
            f"expected soft labels over the model's {scores.shape[1]} classes, received {labels.shape[1]} of them. "
            f"Make both with num_classes={scores.shape[1]}."
        )
    spread = labels.float() if labels.dtype.itemsize < 4 else labels
    if values_can_be_read(spread):
        check_distribution("soft labels", spread)
    return Rows(scores, spread.argmax(1), features, index, target_distribution=spread)


def _all_counted(labels: Tensor, counted: Tensor, classes: int, advice: str) -> bool:
    """Whether no label is ignored; raise where one is out of range."""
    wrong = counted & ((labels < 0) | (labels >= classes))
    some_wrong, all_counted = torch.stack([wrong.any(), counted.all()]).tolist()  # one wait for the device
    if some_wrong:
        row, value = first_wrong(wrong, labels)
        raise ValueError(
            f"expected labels from 0 to {classes - 1}, or {IGNORE} to ignore a row, received {value} "
            f"in row {row}. {advice}"
        )
    return bool(all_counted)
