"""Real image-text pairs that need no network: characters and their Unicode names."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dro_temp._checks import check_count
from dro_temp.datasets import _glyph_images
from dro_temp.datasets._glyph_images import Glyphs
from dro_temp.datasets._samples import check_number, check_size, check_split, hashed

SPLITS = ("train", "val_seen", "val_unseen", "test_seen", "test_unseen")


class GlyphCaptions(Dataset[tuple[Any, str, int]]):
    """Glyphs of the fonts that matplotlib ships, each with its Unicode name: "greek small letter tau".

    Every visible character of every font is one grey image of 32 x 32 pixels, horizontally centred, on a common
    baseline and in a common font size; what would not fit is moved or scaled. The names are long-tailed, and one name
    occurs in up to 30 fonts: true false negatives for a contrastive loss. Many characters look alike under different
    names (Latin, Greek and Cyrillic capital A), so no model can reach 100 %.

    Splits:
        train: seen names in the training fonts.
        val_seen, test_seen: names that occur in train, in fonts that do not.
        val_unseen, test_unseen: names that do not occur in train, in any font; none is in both.

    A third of the drawings of DejaVu Sans exists pixel by pixel in a sister font: images equal to a training image of
    the same name are left out of the seen splits. Held out for **test** are the STIX family, unrelated to the training
    fonts, and DejaVu Sans Bold Oblique, a known family in a new style: 4 % of the images lie within 30 % (Euclidean
    distance by own norm) of a training image of the same name, 0.4 % of those of STIX. Held out for **validation** are
    the small Computer Modern family and DejaVu Sans Mono Bold with its oblique; 12 % lie within 30 %, so validation is
    easier than test: compare its numbers with each other only.

    The first use renders the glyphs, in seconds, into a file below `root`, which is written as a whole and rendered
    again if it is damaged.

    Args:
        split: one of `train`, `val_seen`, `val_unseen`, `test_seen`, `test_unseen`.
        root: folder of the rendered images; `$XDG_CACHE_HOME/dro_temp` or `~/.cache/dro_temp` if None.
        size: number of *training* samples, drawn at random; None for all. Give every split of one experiment the same
            `size`: `*_seen` then hold only names of that subset of train. Smaller subsets lie in larger ones.
        seed: of the held-out names and the subset, not of the held-out fonts. The global random state is not used.
        transform: applied to each image, a float32 tensor [1 32 32] in [0, 1], when it is accessed.

    Attributes:
        images: uint8 [n 32 32], white on black.
        captions: lower-case Unicode name of each sample.
        names: the different captions, sorted.
        name_index: int64 [n], place of each sample's caption in `names`.
        fonts: name of each sample's font.
        codepoints: Unicode code point of each sample.

    Raises:
        ImportError: a package of the `recipes` extra is not installed.
        OSError: the cache folder cannot be written to.
        ValueError: an unknown split, or a `size` below 1 or above the number of training samples.
        TypeError: a `size` or `seed` that is not an int.

    Example:
        >>> data = GlyphCaptions("test_seen")
        >>> image, caption, index = data[0]
        >>> image.shape, data.captions[index] == caption
        (torch.Size([1, 32, 32]), True)

    Source: the fonts' own character maps, and the Unicode Character Database in Python's `unicodedata`.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        root: str | os.PathLike[str] | None = None,
        size: int | None = None,
        seed: int = 0,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        check_split(split, SPLITS, seed)
        if size is not None:  # before anything is rendered
            check_count("size", size)
        self.split, self.size, self.seed, self.transform = split, size, seed, transform
        glyphs = _glyph_images.load(root)
        chosen = _divide(glyphs, seed, size)[split]
        self.images = glyphs.images[torch.tensor(chosen, dtype=torch.long)]
        self.fonts = [glyphs.fonts[row] for row in chosen]
        self.codepoints = [glyphs.codepoints[row] for row in chosen]
        self.captions = [unicodedata.name(chr(code)).lower() for code in self.codepoints]
        self.names = sorted(set(self.captions))
        place = {name: i for i, name in enumerate(self.names)}
        self.name_index = torch.tensor([place[caption] for caption in self.captions], dtype=torch.long)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Any, str, int]:
        """Image (float32 [1 32 32] in [0, 1], or what `transform` makes of it), caption and sample number.

        Raises:
            IndexError: `index` is not in [0, len).
        """
        index = check_number(index, len(self))
        return image_at(self.images, index, self.transform), self.captions[index], index

    def __repr__(self) -> str:
        belongs = "" if self.size is None else f", size={self.size}"
        return (
            f"GlyphCaptions({self.split!r}{belongs}, seed={self.seed}: {len(self)} images, "
            f"{len(self.names)} names, {len(set(self.fonts))} fonts)"
        )


def image_at(images: Tensor, index: int, transform: Callable[[Tensor], Any] | None) -> Any:
    """One of the images, float32 [1 32 32] in [0, 1], or what the transform makes of it."""
    image = images[index].float().div(255.0).unsqueeze(0)
    return image if transform is None else transform(image)


# Fonts by the beginning of their names. See GlyphCaptions for why these.
HELD_OUT = {"test_seen": ("STIX", "DejaVuSans-BoldOblique"), "val_seen": ("cm", "DejaVuSansMono-Bold")}

# Shares of all images whose names are held out.
TEST_UNSEEN, VAL_UNSEEN = 0.10, 0.035


def _divide(glyphs: Glyphs, seed: int, size: int | None) -> dict[str, list[int]]:
    """Rows of `glyphs` in each split, those that belong to a random `size` of the training samples."""
    held_out = _held_out_names(glyphs.codepoints, seed)
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, (code, font) in enumerate(zip(glyphs.codepoints, glyphs.fonts, strict=True)):
        seen = next((split for split, fonts in HELD_OUT.items() if font.startswith(fonts)), "train")
        rows[held_out.get(code, seen)].append(row)
    images = [
        (code, image.tobytes()) for code, image in zip(glyphs.codepoints, glyphs.images.numpy(), strict=True)
    ]
    trained = {images[row] for row in rows["train"]}
    if size is not None:
        size = check_size(size, len(rows["train"]), "training samples")
        place = {
            row: hashed("sample", seed, glyphs.fonts[row], glyphs.codepoints[row]) for row in rows["train"]
        }
        rows["train"] = sorted(sorted(place, key=place.__getitem__)[:size])
    names = {glyphs.codepoints[row] for row in rows["train"]}
    for split in HELD_OUT:
        rows[split] = [i for i in rows[split] if glyphs.codepoints[i] in names and images[i] not in trained]
    return rows


def _held_out_names(codepoints: list[int], seed: int) -> dict[int, str]:
    """Held-out names (as code points) and their splits: whole names, until the shares of images are reached."""
    count = Counter(codepoints)
    held_out, images = {}, 0
    for code in sorted(count, key=lambda code: hashed("name", seed, code)):
        if images >= (TEST_UNSEEN + VAL_UNSEEN) * len(codepoints):
            break
        held_out[code] = "test_unseen" if images < TEST_UNSEEN * len(codepoints) else "val_unseen"
        images += count[code]
    return held_out
