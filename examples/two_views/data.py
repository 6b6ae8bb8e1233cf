"""Glyphs of frequent names, and their augmentation."""

import functools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from dro_temp.datasets import GlyphCaptions

from .config import FONTS


@dataclass(frozen=True)
class Labelled:
    """Images, uint8 [n 32 32], and the number of each image's name."""

    images: Tensor
    name: Tensor


@dataclass(frozen=True)
class Data:
    """One split of the glyphs. Training uses `train.images` alone; names are for the evaluation.

    Args:
        train: glyphs in nine training fonts.
        val: the same names in the validation fonts.
        test: the same names in fonts that are used nowhere else.
    """

    train: Labelled
    val: Labelled
    test: Labelled


def augmentation() -> v2.Compose:
    """Transform of a uint8 image [1 32 32] to an augmented one. No flips: letters are not symmetric."""
    smooth = v2.InterpolationMode.BILINEAR
    return v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(32, scale=(0.7, 1.0), ratio=(0.8, 1.25)),
            v2.RandomAffine(10, translate=(0.1, 0.1), shear=10, interpolation=smooth),
            v2.RandomErasing(0.5, scale=(0.02, 0.1)),
        ]
    )


def view(images: Tensor, augment: Callable[[Tensor], Tensor]) -> Tensor:
    """Augment each image separately: torchvision would transform all images of a batch alike."""
    return torch.stack([augment(image) for image in images[:, None]])


@functools.lru_cache(maxsize=2)
def load(names: int, seed: int) -> Data:
    """A random subset of the names that nine training fonts have.

    Raises:
        ValueError: more names are wanted than there are.
    """
    sets = [GlyphCaptions(split, seed=seed) for split in ("train", "val_seen", "test_seen")]
    drawn = Counter(sets[0].captions)
    frequent = sorted(name for name, fonts in drawn.items() if fonts >= FONTS)
    if not 2 <= names <= len(frequent):
        raise ValueError(
            f"expected --names from 2 to {len(frequent)}, received {names}. Type --names {min(300, len(frequent))}."
        )
    chosen = random.Random(seed).sample(frequent, names)
    place = {name: i for i, name in enumerate(chosen)}
    return Data(*(_labelled(glyphs, place) for glyphs in sets))


def _labelled(glyphs: GlyphCaptions, place: dict[str, int]) -> Labelled:
    name = torch.tensor([place.get(caption, -1) for caption in glyphs.captions])
    return Labelled(glyphs.images[name >= 0], name[name >= 0])
