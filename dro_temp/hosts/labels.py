"""Rows with labels (class numbers, some ignored, or distributions over the classes), and their sample numbers."""

from typing import Any

import torch
from torch import Tensor

from dro_temp import _faults
from dro_temp import functional as F
from dro_temp._checks import (
    check_integers,
    check_shape,
    check_tensor,
    first_wrong,
    holds_integers,
    values_can_be_read,
)
from dro_temp._typing import Features
from dro_temp.interfaces import LinearScores, Rows
from dro_temp.interfaces.rows import check_distribution
from dro_temp.kernels.dispatch import replaces_operations, row_numbers

IGNORE = -100  # the default `ignore_index` of PyTorch's losses


def labelled_rows(
    scores: Tensor | LinearScores,
    labels: Tensor,
    features: Features | None = None,
    index: Any = None,
    *,
    mask: Tensor | None = None,
    smoothing: float = 0.0,
    advice: str = "Give the model as many outputs as there are classes, or renumber the labels.",
) -> Rows:
    r"""Rows of a classifier or language model, from its scores and the labels of a batch.

    Ignored labels and padding get weight 0, which makes a row inert in every loss; target 0 stands in for their label.
    With smoothing $\epsilon$ the target distribution over m classes is $(1 - \epsilon)\,\mathbb{1}[j = y] +
    \epsilon / m$.

    Args:
        scores: [n m] one row per label, as a matrix or as `LinearScores`; sequences flattened, `logits.flatten(0, 1)`.
        labels: [n] class numbers from 0 to m - 1, or -100 to ignore a row; or [n m] probabilities of the classes.
        features: [n d] what predictors may read of each row, or None.
        index: [n] the samples' numbers in the data set, also as a list or an array, or None.
        mask: [n] attention mask, 0 or False at padding; None: no row is padding.
        smoothing: share of the target that all classes get alike, in [0, 1]; probabilities stay as they are.
        advice: last sentence of the error about a label out of range: what to type instead.

    Returns:
        Rows whose `weight` is None where every row counts, so that losses need not look for rows that do not. With
        class numbers on a device, where finding that out would wait, `weight` is always a tensor.

    Raises:
        TypeError: `labels` is not a tensor, or holds class numbers that are not integers.
        ValueError: labels of another shape, a label out of range (on a device, the error comes late), or probabilities
            that do not sum to one.

    Example:
        >>> import torch, dro_temp as dt
        >>> logits, labels = torch.zeros(1, 3, 5), torch.tensor([[4, -100, 2]])  # a text of three words
        >>> padding = torch.tensor([[1, 1, 0]])
        >>> rows = dt.hosts.labelled_rows(logits.flatten(0, 1), labels.flatten(), mask=padding.flatten())
        >>> rows.target, rows.weight
        (tensor([4, 0, 0]), tensor([1., 0., 0.]))
    """
    check_tensor("labels", labels)
    index = None if index is None else as_index(index, labels.device)
    shape = scores.shape
    if len(labels.shape) not in (1, 2) or labels.shape[0] != shape[0]:
        raise ValueError(
            f"expected labels of shape [{shape[0]}], or probabilities of shape {list(shape)}, received "
            f"{list(labels.shape)}. Pass one label for each row of scores."
        )
    classes = shape[1]
    if mask is not None:
        check_tensor("mask", mask)
        check_shape("mask", mask, labels.shape[:1], "Flatten it together with the labels.")
        mask = mask != 0
    if labels.is_floating_point() and labels.dim() == 2:
        if labels.shape[1] != classes:
            raise ValueError(
                f"expected soft labels over the model's {classes} classes, received {labels.shape[1]} of them. "
                f"Make both with num_classes={classes}."
            )
        distribution = labels.float() if labels.dtype.itemsize < 4 else labels
        if values_can_be_read(distribution):
            check_distribution("soft labels", distribution, mask)
        weight: Tensor | None = None if mask is None else mask.float()
        target = distribution.argmax(1)
        return Rows(scores, target, features, index, weight=weight, target_distribution=distribution)
    check_integers("labels", labels)
    on_device = labels.is_cuda or _faults.everywhere
    if on_device and len(labels) and replaces_operations(labels, *(() if mask is None else (mask,))):
        labels, weight, wrongs = row_numbers().labels(labels, mask, classes, ignore=IGNORE)
        _faults.check(wrongs, lambda x: _first_wrong_label(x, len(labels), classes, advice))
        smoothed = F.smoothed_distribution(labels, classes, smoothing) if smoothing else None
        return Rows(scores, labels, features, index, weight=weight, target_distribution=smoothed)
    counted = labels != IGNORE if mask is None else (labels != IGNORE) & mask
    weight, all_counted = None, False
    if not torch.compiler.is_compiling():
        wrong = counted & ((labels < 0) | (labels >= classes))
        if on_device:
            if len(labels):
                row = wrong.long().argmax()
                numbers = torch.stack([wrong.any().long(), row, labels.index_select(0, row[None])[0].long()])
                _faults.check(numbers, lambda x: _wrong_label(x[1], x[2], classes, advice) if x[0] else None)
            counted = counted & ~wrong  # such a label is not a column
        else:
            some_wrong, all_counted = bool(wrong.any()), bool(counted.all())
            if some_wrong:
                raise _wrong_label(*first_wrong(wrong, labels), classes, advice)
    if not all_counted:
        labels, weight = labels.masked_fill(~counted, 0), counted.float()
    smoothed = F.smoothed_distribution(labels, classes, smoothing) if smoothing else None
    return Rows(scores, labels, features, index, weight=weight, target_distribution=smoothed)


def _first_wrong_label(parts: list[list[int]], n: int, classes: int, advice: str) -> ValueError | None:
    """The error for the first of some places and values, if one of them is a row."""
    row, value = min(parts)
    return _wrong_label(row, value, classes, advice) if row < n else None


def _wrong_label(row: int, value: int, classes: int, advice: str) -> ValueError:
    return ValueError(
        f"expected labels from 0 to {classes - 1}, or {IGNORE} to ignore a row, received {value} in row {row}. {advice}"
    )


def as_index(index: Any, device: torch.device, *, name: str = "index") -> Tensor | None:
    """Sample numbers that come as a list, a tuple or a NumPy array as a tensor on the device; a tensor as it is.

    `name` is what they are called in errors; numbers of groups are another case.
    """
    if index is None or isinstance(index, Tensor):
        return index
    received, cause = type(index).__name__, None
    try:
        numbers = torch.as_tensor(index)
        numbers = numbers if numbers.numel() else numbers.long()
        if holds_integers(numbers):
            return numbers.to(device)
        received += f" of {str(numbers.dtype).removeprefix('torch.')}"
    except (TypeError, ValueError, RuntimeError) as error:
        cause = error
    what = "each sample's number in the data set" if name == "index" else "a number for each group"
    raise TypeError(
        f"expected {name} as whole numbers, received {received}. Pass {what} as a tensor, a list or an array of "
        "integers; dro_temp.datasets.SampleTable makes numbers of other keys."
    ) from cause
