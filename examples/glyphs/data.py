"""The pairs as tensors in memory: at this size a data loader would cost more than the model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp.datasets import GlyphCaptions, WordTokenizer

from .config import Config


@dataclass(frozen=True)
class Pairs:
    """One split. Image i shows the glyph called `names[name_index[i]]`; names are tokenised once each."""

    images: Tensor
    tokens: Tensor
    names: list[str]
    name_index: Tensor

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.images)


@dataclass(frozen=True)
class Data:
    """All splits, with the vocabulary of the training captions."""

    splits: dict[str, Pairs]
    vocabulary: int


def load(config: Config) -> Data:
    """Render every split, or read it from the cache; the same for all methods and seeds.

    Raises:
        ValueError: more training pairs are wanted than there are.
    """
    try:
        train = GlyphCaptions("train", size=config.train_size)
    except ValueError as error:
        available = len(GlyphCaptions("train"))
        raise ValueError(
            f"expected at most {available} training pairs, all there are, received --train-size "
            f"{config.train_size}. Type --train-size {available}."
        ) from error
    tokenizer = WordTokenizer.fit(train.captions)
    splits = {"train": _pairs(train, tokenizer, len(train))}
    for split in ("val_seen", "val_unseen", "test_seen", "test_unseen"):
        # The same size again: "seen" means seen in *this* training set.
        dataset = GlyphCaptions(split, size=config.train_size)
        splits[split] = _pairs(dataset, tokenizer, config.eval_size)
    return Data(splits, len(tokenizer.vocabulary))


def _pairs(dataset: GlyphCaptions, tokenizer: WordTokenizer, at_most: int) -> Pairs:
    """The split or a random subset of it, with the names that occur in it."""
    chosen = torch.arange(len(dataset))
    if len(dataset) > at_most:
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:at_most]
    occurring, name_index = dataset.name_index[chosen].unique(return_inverse=True)
    names = [dataset.names[i] for i in occurring.tolist()]
    return Pairs(dataset.images[chosen], tokenizer(names), names, name_index)
