"""One split of the glyph-caption pairs, with a given share of the training captions shuffled."""

import functools
from dataclasses import dataclass

import torch
from glyphs.data import Data, Pairs
from torch import Tensor

from dro_temp.datasets import GlyphCaptions, WordTokenizer

SPLITS = ("train", "val_seen", "val_unseen", "test_seen", "test_unseen")


@dataclass(frozen=True)
class Setting:
    """What all methods of one study share.

    Args:
        size: training pairs.
        batch: pairs per step.
        epochs: passes over them.
        noise: share of the training captions that are shuffled among themselves.
    """

    size: int = 8_000
    batch: int = 128
    epochs: int = 10
    noise: float = 0.0

    @property
    def name(self) -> str:
        """Names files and sections of the results."""
        noise = f"-noise{self.noise:g}" if self.noise else ""
        return f"{self.size}x{self.batch}x{self.epochs}{noise}"


@functools.lru_cache(maxsize=2)
def load(size: int, split: int) -> Data:
    """Pairs of one split: another number, other unseen names and another sample of the pairs."""
    sets = {name: GlyphCaptions(name, size=size, seed=split) for name in SPLITS}
    tokenizer = WordTokenizer.fit(sets["train"].captions)
    pairs = {
        name: Pairs(part.images, tokenizer(part.names), part.names, part.name_index)
        for name, part in sets.items()
    }
    return Data(pairs, len(tokenizer.vocabulary))


def captions(train: Pairs, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Number of each training image's name, and which of the names are wrong."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    chosen = torch.randperm(len(train), generator=generator)[: round(noise * len(train))]
    names = train.name_index.clone()
    names[chosen] = names[chosen[torch.randperm(len(chosen), generator=generator)]]
    return names, names != train.name_index
