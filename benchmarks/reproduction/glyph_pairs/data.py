"""One split of the glyph-caption pairs, with as many captions shuffled as are wanted."""

import functools
from dataclasses import dataclass

import torch
from glyphs.data import Data, Pairs
from torch import Tensor

from dro_temp.datasets import GlyphCaptions, WordTokenizer

SPLITS = ("train", "val_seen", "val_unseen", "test_seen", "test_unseen")


@dataclass(frozen=True)
class Setting:
    """What all arms of one study share.

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
        """In files."""
        noise = f"-noise{self.noise:g}" if self.noise else ""
        return f"{self.size}x{self.batch}x{self.epochs}{noise}"


@functools.lru_cache(maxsize=2)
def load(size: int, split: int) -> Data:
    """Pairs of a division of the names: another `split`, other names held out and other pairs drawn."""
    sets = {name: GlyphCaptions(name, size=size, seed=split) for name in SPLITS}
    tokenizer = WordTokenizer.fit(sets["train"].captions)
    pairs = {
        name: Pairs(found.images, tokenizer(found.names), found.names, found.name_index)
        for name, found in sets.items()
    }
    return Data(pairs, len(tokenizer.vocabulary))


def captions(train: Pairs, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Name of each training image, and which of them are somebody else's."""
    generator = torch.Generator().manual_seed(1_000 + seed)
    chosen = torch.randperm(len(train), generator=generator)[: round(noise * len(train))]
    names = train.name_index.clone()
    names[chosen] = names[chosen[torch.randperm(len(chosen), generator=generator)]]
    return names, names != train.name_index
