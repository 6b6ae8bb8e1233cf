"""Any module that scores classes."""

from typing import Any

import torch
from torch import Tensor, nn

from dro_temp.interfaces import HostAdapter, LinearScores, Rows

IGNORE = -100  # torch's own label for "does not count"


class Classifier(HostAdapter):
    r"""A module that returns logits, or a backbone and a head.

    With a head, predictors may read the backbone's output (`features`); with a plain module only the logits
    (`TempNet.for_logits`). Labels of -100 are ignored.

    Args:
        model: module with `model(inputs) -> [n classes]`, or the backbone, with `model(inputs) -> [n d]`.
        head: module from [n d] to [n classes], or None.
        frozen: True to leave the model alone.

    Raises:
        ValueError: logits or features that are not two-dimensional, labels out of range.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.Classifier(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3))
        >>> host(torch.randn(8, 6), torch.randint(3, (8,)))["class"].support_size
        3
    """

    views = ("class",)

    def __init__(self, model: nn.Module, head: nn.Module | None = None, *, frozen: bool = False) -> None:
        super().__init__(frozen=frozen)
        self.model = model
        self.head = head

    def rows(self, inputs: Any, labels: Tensor, index: Tensor | None = None) -> dict[str, Rows]:
        """One row per input.

        Args:
            inputs: whatever the model takes.
            labels: class numbers; -100 is ignored.
            index: the samples' numbers in the data set.
        """
        output = self.model(inputs)
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise ValueError(
                "expected the model to return a tensor [n, d] or [n, classes], received "
                f"{list(output.shape) if isinstance(output, Tensor) else type(output).__name__}. "
                "Pool over space first, or wrap the model so that it does."
            )
        if self.head is None:
            return {"class": _labelled(output, labels, None, index)}
        # The exact type: a subclass or a wrapped layer may compute something else.
        scores: Tensor | LinearScores
        if type(self.head) is nn.Linear:
            scores = LinearScores(output, self.head.weight, self.head.bias)
        else:
            scores = self.head(output)
        return {"class": _labelled(scores, labels, output, index)}


def _labelled(
    scores: Tensor | LinearScores, labels: Tensor, features: Tensor | None, index: Tensor | None
) -> Rows:
    classes = scores.shape[1]
    counted = labels != IGNORE
    if not torch.compiler.is_compiling() and _all_counted(labels, counted, classes):
        return Rows(scores, labels, features, index)
    return Rows(scores, labels.masked_fill(~counted, 0), features, index, weight=counted.float())


def _all_counted(labels: Tensor, counted: Tensor, classes: int) -> bool:
    """Whether no label is ignored; raise where one is out of range."""
    wrong = counted & ((labels < 0) | (labels >= classes))
    some_wrong, all_counted = torch.stack([wrong.any(), counted.all()]).tolist()  # one wait for the device
    if some_wrong:
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"expected labels from 0 to {classes - 1}, or {IGNORE} to ignore a row, received {int(labels[row])} "
            f"in row {row}. Give the model as many outputs as there are classes, or renumber the labels."
        )
    return bool(all_counted)
