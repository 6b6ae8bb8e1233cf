"""Images with some wrong labels: handwritten digits, digits with five rare classes, and glyphs by script."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.studies.common.networks import digits_body
from dro_temp.datasets import GlyphScripts

WIDTH = 64
Images, Labels = Tensor, Tensor
Split = tuple[Images, Labels]


@dataclass(frozen=True)
class Splits:
    """Training, validation and test images; labels of the latter two are right.

    Args:
        train: images and their labels, some of which are wrong.
        right: the right labels of the training images.
        validation: images and right labels.
        test: images and right labels.
    """

    train: Split
    right: Labels
    validation: Split
    test: Split

    def right_alone(self) -> "Splits":
        """Without the training images whose label is wrong."""
        images, labels = self.train
        right = labels == self.right
        return Splits((images[right], labels[right]), self.right[right], self.validation, self.test)


@dataclass(frozen=True)
class Problem:
    """A data set and the body of the network for it.

    Args:
        classes: number of classes.
        epochs: passes over the training images.
        draw: training, validation and test images of a seed, with right labels.
        body: makes a module from images to features [n WIDTH].
    """

    classes: int
    epochs: int
    draw: Callable[[int], tuple[Split, Split, Split]]
    body: Callable[[], nn.Module]

    def splits(self, noise: float, seed: int) -> Splits:
        """The splits of a seed, with a share of the training labels redrawn uniformly from all classes."""
        (images, right), validation, test = self.draw(seed)
        chance = torch.Generator().manual_seed(1_000 + seed)
        redrawn = torch.rand(len(right), generator=chance) < noise
        labels = torch.where(redrawn, torch.randint(self.classes, (len(right),), generator=chance), right)
        return Splits((images, labels), right, validation, test)


def _digits(seed: int, train: int = 900) -> tuple[Split, Split, Split]:
    """scikit-learn's 1,797 digits: for training, 300 for validation, and the rest for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = order.split([train, 300, len(images) - train - 300])
    first, second, third = ((images[part], torch.tensor(digits.target)[part]) for part in parts)
    return first, second, third


def _imbalanced(seed: int, often: int = 100, rarely: int = 3) -> tuple[Split, Split, Split]:
    """Digits; five classes, drawn by the seed, have at most 100 training images, the others three."""
    (images, labels), validation, test = _digits(seed, train=1_100)
    common = torch.randperm(10, generator=torch.Generator().manual_seed(seed))[:5].tolist()
    limits = [often if digit in common else rarely for digit in range(10)]
    chosen = torch.cat([(labels == digit).nonzero()[:n, 0] for digit, n in enumerate(limits)])
    return (images[chosen], labels[chosen]), validation, test


def _scripts(seed: int) -> tuple[Split, Split, Split]:
    """Glyphs of twelve scripts; validation and test images are of other fonts than training images."""
    sizes = {"train": 2_000, "val": 1_500, "test": 5_000}
    parts = [GlyphScripts(split, size=size, seed=seed) for split, size in sizes.items()]
    first, second, third = ((part.images[:, None].float() / 255.0, part.labels) for part in parts)
    return first, second, third


def _scripts_body() -> nn.Module:
    """From [n 1 32 32] to [n WIDTH]."""
    widths = (1, 16, 32, 64)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1_024, WIDTH), nn.GELU())


PROBLEMS = {
    "digits": Problem(10, 40, _digits, lambda: digits_body(WIDTH)),
    "scripts": Problem(12, 15, _scripts, _scripts_body),
    "digits-100-to-3": Problem(10, 60, _imbalanced, lambda: digits_body(WIDTH)),
}
