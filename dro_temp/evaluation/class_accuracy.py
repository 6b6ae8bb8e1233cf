"""Classification by the nearest class name."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._modes import evaluating
from dro_temp.evaluation._encoders import Encode, encoded, modules_behind
from dro_temp.evaluation._features import (
    BLOCK,
    ROUNDING,
    check_features,
    check_ks,
    check_labels,
    expected_hits,
    unit,
)
from dro_temp.evaluation._progress import shown
from dro_temp.evaluation.prompts import class_embeddings


@dataclass(frozen=True)
class ClassAccuracy:
    """How often the right class is found, in percent.

    Args:
        accuracy: for each k, share of items with their class among the k most probable.
        per_class: for k = 1 (or the least k), the same for the items of each class; NaN for a class without items.
        count: number of items of each class.
    """

    accuracy: dict[int, float]
    per_class: tuple[float, ...]
    count: tuple[int, ...]

    @property
    def mean_per_class(self) -> float:
        """Mean over the classes that have items."""
        there = [value for value in self.per_class if not math.isnan(value)]
        return sum(there) / len(there)


def zero_shot(
    encode_image: Encode,
    encode_text: Encode,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    classnames: Sequence[str],
    templates: Sequence[str | Callable[[str], str]],
    tokenizer: Callable[[list[str]], Any],
    ks: Sequence[int] = (1, 5),
    batch_size: int = 256,
    progress: bool = False,
) -> ClassAccuracy:
    """Accuracy of images classified by the class name that they are nearest to.

    The class weights are `class_embeddings`, the rule is that of `zero_shot_accuracy`; images are encoded and
    forgotten batch by batch.

    Args:
        encode_image: from a batch of images to vectors [n d]: `host.encode_image`, or any function. The module that
            it belongs to runs in evaluation mode, and is put back.
        encode_text: from what the tokenizer returns to vectors of the same width: `host.encode_text`.
        batches: images and class numbers [n], for example a DataLoader. Images are moved to the encoder's device;
            a mapping is passed as keywords where `encode_image` takes keywords only.
        classnames: one name per class, in the order of the class numbers.
        templates: strings with {} where the name stands, or functions of the name.
        tokenizer: from a list of strings to what `encode_text` takes.
        ks: how many classes are looked at, each at most their number.
        batch_size: prompts that are encoded at once.
        progress: show progress bars.

    Raises:
        ValueError: what `class_embeddings` and `zero_shot_accuracy` raise; no batches.
        TypeError: class names or templates as one string; labels that are no integers.
        ImportError: `progress` without rich.

    Example:
        >>> import dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Identity(), torch.nn.Identity())
        >>> letters = lambda texts: torch.tensor([[text.count("a"), text.count("b")] for text in texts]).float()
        >>> batches = [(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([0, 1]))]
        >>> zero_shot(host.encode_image, host.encode_text, batches, classnames=["aa", "bb"], templates=["{}"],
        ...           tokenizer=letters, ks=(1,)).accuracy
        {1: 100.0}

    Source: Radford et al., arXiv 2103.00020.
    """
    check_ks(ks, len(classnames), "classes")
    classes = class_embeddings(
        encode_text, tokenizer, classnames, templates, batch_size=batch_size, progress=progress
    )
    sums = _Sums(classes, ks)
    with evaluating(*modules_behind(encode_image)):
        for images, label in shown(batches, "images" if progress else None):
            sums.add(encoded(encode_image, images), label)
    return sums.report()


def zero_shot_accuracy(
    images: Float[Tensor, "n d"],
    classes: Float[Tensor, "c d"],
    label: Int[Tensor, "n"],
    *,
    ks: Sequence[int] = (1, 5),
    progress: bool = False,
) -> ClassAccuracy:
    r"""Accuracy of features classified by the class vector of highest cosine similarity.

    Ties, up to rounding ($2^{-20}$), are broken by lot, in expectation: of t classes that are as near as the right
    one, it included, with a nearer ones before them, the right one is among the first k with probability
    $(k - a) / t$, from 0 to 1. So a collapsed model has the accuracy of guessing, and the second of two classes with
    one name, which lists of ImageNet's names have, is as good as the first. (In retrieval ties are misses.)

    Args:
        images: features, any length.
        classes: one vector per class, any length: `class_embeddings`.
        label: class number of each image.
        ks: how many classes are looked at, each at most their number.
        progress: show a progress bar.

    Raises:
        ValueError: features that are no finite matrices of one width, a label of no class, or a k above the number
            of classes.
        TypeError: features or labels of a wrong dtype.
        ImportError: `progress` without rich.

    Example:
        >>> report = zero_shot_accuracy(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 1]), ks=(1, 2))
        >>> report.per_class, round(report.accuracy[1], 1)
        ((100.0, 50.0, nan), 66.7)
    """
    sums = _Sums(classes, ks)
    check_features(images=images, classes=classes)
    label = check_labels("label", label, len(images), len(classes))
    rows = max(1, BLOCK // len(classes))
    parts = list(zip(torch.split(images, rows), torch.split(label, rows), strict=True))
    with torch.no_grad():
        for part in shown(parts, "images" if progress else None):
            sums.add(*part)
    return sums.report()


class _Sums:
    """Hits by class, summed over batches."""

    def __init__(self, classes: Tensor, ks: Sequence[int]) -> None:
        check_features(classes=classes)
        self.ks = check_ks(ks, len(classes), "classes")
        self.classes = classes
        self.hits = torch.zeros(len(classes), len(self.ks), dtype=torch.float64)
        self.count = torch.zeros(len(classes), dtype=torch.long)

    def add(self, images: Tensor, label: Tensor) -> None:
        """Take in a batch."""
        check_features(images=images, classes=self.classes)
        label = check_labels("label", label, len(images), len(self.classes))
        rows = unit(images)
        scores = rows @ unit(self.classes).to(rows).T
        # Not torchmetrics' MulticlassAccuracy: at k = 5 and 1000 classes it took 13 times as long, and among ties
        # it takes the first class, so that a collapsed model is perfect on it.
        hits = expected_hits(scores, label.to(images.device), self.ks, ROUNDING).cpu().double()
        self.hits.index_add_(0, label.cpu(), hits)
        self.count += torch.bincount(label.cpu(), minlength=len(self.count))

    def report(self) -> ClassAccuracy:
        """Percentages."""
        n = int(self.count.sum())
        if n == 0:
            raise ValueError(
                "expected at least one batch of images and labels, received none. Pass a DataLoader, or a list: a "
                "generator is used up after one sweep."
            )
        total = (100.0 * self.hits.sum(dim=0) / n).tolist()
        per_class = (100.0 * self.hits[:, self.ks.index(min(self.ks))] / self.count).tolist()  # 0 / 0 is NaN
        return ClassAccuracy(
            dict(zip(self.ks, total, strict=True)), tuple(per_class), tuple(self.count.tolist())
        )
