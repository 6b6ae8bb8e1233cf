"""Images with classes that need no network: characters and the script that they belong to."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dro_temp._optional import optional_module
from dro_temp.datasets._samples import check_number, check_size, check_split
from dro_temp.datasets.glyphs import GlyphCaptions, image_at

#: The classes: first words of Unicode names, of writing systems that several fonts have.
SCRIPTS = (
    *("latin", "greek", "cyrillic", "armenian", "georgian", "arabic"),
    *("hebrew", "canadian", "lao", "lisu", "braille", "box"),
)
_PARTS = {"train": ("train",), "val": ("val_seen", "val_unseen"), "test": ("test_seen", "test_unseen")}


class GlyphScripts(Dataset[tuple[Any, int]]):
    """The glyphs of `GlyphCaptions` with their script as the class: 12 classes, from Latin to box drawings.

    Long-tailed like the fonts: 7,000 Latin images and 100 of Lisu. Fonts of the validation and the test images are
    not those of training (see `GlyphCaptions`). Capital A is one drawing under three scripts: no model can reach 100 %.

    Args:
        split: "train", "val" or "test".
        root: as in `GlyphCaptions`, as is `transform`.
        size: number of images, drawn at random; None for all.
        seed: of these images and of the held-out names; the global random state is not used.

    Attributes:
        images: uint8 [n 32 32], white on black.
        labels: int64 [n], place of each image's script in `classes`.
        classes: names of the scripts.

    Raises:
        ImportError: a package of the `recipes` extra is not installed.
        ValueError: an unknown split, or a size below 1 or above the number of images.

    Example:
        >>> data = GlyphScripts("test", size=100)
        >>> image, label = data[0]
        >>> image.shape, len(data), len(data.classes)
        (torch.Size([1, 32, 32]), 100, 12)
    """

    classes: tuple[str, ...] = SCRIPTS

    def __init__(
        self,
        split: str = "train",
        *,
        root: str | os.PathLike[str] | None = None,
        size: int | None = None,
        seed: int = 0,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        check_split(split, _PARTS, seed)
        self.split, self.seed, self.transform = split, seed, transform
        parts = [GlyphCaptions(part, root=root, seed=seed) for part in _PARTS[split]]
        place = {script: i for i, script in enumerate(SCRIPTS)}
        label = torch.tensor([place.get(name.split()[0], -1) for part in parts for name in part.captions])
        chosen = (label >= 0).nonzero()[:, 0]
        if size is not None:
            size = check_size(size, len(chosen), "images")
            order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
            chosen = chosen[order[:size].sort().values]
        self.images = torch.cat([part.images for part in parts])[chosen]
        self.labels = label[chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Image (float32 [1 32 32] in [0, 1], or what `transform` makes of it) and class number.

        Raises:
            IndexError: `index` is not in [0, len).
        """
        index = check_number(index, len(self))
        return image_at(self.images, index, self.transform), int(self.labels[index])

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write PNG files by class, `<folder>/<script>/00042.png`, for torchvision's ImageFolder and timm's loaders.

        Existing files are overwritten, so that an interrupted call can be repeated.

        Args:
            folder: parent of the classes' folders.

        Returns:
            The folder.
        """
        image = optional_module("PIL.Image", "which writes images", extra="recipes")
        folder = Path(folder)
        for script in self.classes:  # also those without an image: class numbers must agree between splits
            (folder / script).mkdir(parents=True, exist_ok=True)
        for number, (pixels, label) in enumerate(zip(self.images, self.labels.tolist(), strict=True)):
            image.fromarray(pixels.numpy()).save(folder / self.classes[label] / f"{number:05d}.png")
        return folder

    def __repr__(self) -> str:
        return f"GlyphScripts({self.split!r}, seed={self.seed}: {len(self)} images of {len(self.classes)} scripts)"
