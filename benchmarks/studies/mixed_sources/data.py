"""One division of the glyph-caption pairs into sources, each with its share of wrong captions and its mark."""

from dataclasses import dataclass, replace

import torch
from glyphs.data import Data, Pairs
from glyphs.model import TextEncoder, image_encoder
from torch import Tensor, nn

from benchmarks.studies.two_towers.data import load

#: Marks by which a source can be recognised in an image: two grey rows, two grey columns, none.
MARKS = 3
GREY = 128


@dataclass(frozen=True)
class Setting:
    """What all methods of one study share.

    Args:
        size: training pairs.
        batch: pairs per step.
        epochs: passes over them.
        noise: share of wrong captions in each source.
        marked: whether images show their source.
        long_tail: whether names are as rare as Zipf's law makes them: the r-th has a share of 1 / r.
        large: whether the encoders are the larger ones.
    """

    size: int = 8_000
    batch: int = 128
    epochs: int = 10
    noise: tuple[float, ...] = (0.0, 0.3, 0.7)
    marked: bool = True
    long_tail: bool = False
    large: bool = False

    @property
    def width(self) -> int:
        """Width of both encoders' vectors."""
        return 384 if self.large else 96

    def encoders(self, vocabulary: int) -> tuple[nn.Module, nn.Module]:
        """Image encoder and text encoder: 0.2 million parameters, or 3 million."""
        channels = (64, 128, 256) if self.large else (16, 32, 64)
        return image_encoder(self.width, channels), TextEncoder(vocabulary, self.width)

    @property
    def name(self) -> str:
        """Names files and sections of the results."""
        shares = "-".join(f"{share:g}" for share in self.noise)
        more = ("" if self.marked else "-unmarked") + ("-tail" if self.long_tail else "")
        more += "-large" if self.large else ""
        return f"{self.size}x{self.batch}x{self.epochs}-wrong{shares}{more}"


@dataclass(frozen=True)
class Mixture:
    """Training pairs of all sources, and what is held out.

    Args:
        data: the pairs, without marks.
        images: training images with their sources' marks, uint8 [n 32 32].
        names: number of each training image's caption among the names, [n].
        wrong: True where that is another image's, [n].
        source: number of each pair's source, [n].
        noise: share of wrong captions in each pair's source, [n].
        marks: mark of each source.
    """

    data: Data
    images: Tensor
    names: Tensor
    wrong: Tensor
    source: Tensor
    noise: Tensor
    marks: tuple[int, ...]


def mixture(setting: Setting, seed: int) -> Mixture:
    """A division: other held-out names and pairs, other sources and wrong captions; marks rotate over the sources."""
    data = _with_long_tail(setting.size, seed) if setting.long_tail else load(setting.size, seed)
    train = data.splits["train"]
    generator = torch.Generator().manual_seed(2_000 + seed)
    sources = len(setting.noise)
    source = torch.randperm(len(train), generator=generator) % sources
    names = shuffled(train.name_index, source, setting.noise, generator)
    marks = tuple((k + seed) % MARKS if setting.marked else MARKS - 1 for k in range(sources))
    images = marked(train.images, torch.tensor(marks)[source])
    noise = torch.tensor(setting.noise)[source]
    return Mixture(data, images, names, names != train.name_index, source, noise, marks)


def shuffled(names: Tensor, source: Tensor, noise: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """Captions, of which the given share of each source is shuffled among that source's pairs."""
    names = names.clone()
    for k, share in enumerate(noise):
        members = (source == k).nonzero()[:, 0]
        chosen = members[torch.randperm(len(members), generator=generator)[: round(share * len(members))]]
        names[chosen] = names[chosen[torch.randperm(len(chosen), generator=generator)]]
    return names


def marked(images: Tensor, mark: Tensor) -> Tensor:
    """Images uint8 [n 32 32] with the mark of each, [n]."""
    images = images.clone()
    images[:, :2].masked_fill_((mark == 0)[:, None, None], GREY)
    images[:, :, :2].masked_fill_((mark == 1)[:, None, None], GREY)
    return images


def with_mark(pairs: Pairs, mark: int) -> Pairs:
    """The same pairs, all with one mark."""
    return replace(pairs, images=marked(pairs.images, torch.full((len(pairs),), mark)))


def noisy(pairs: Pairs, setting: Setting, marks: tuple[int, ...], seed: int) -> Pairs:
    """Held-out pairs as a user has them: from the same sources, with their marks and wrong captions."""
    generator = torch.Generator().manual_seed(3_000 + seed)
    source = torch.randperm(len(pairs), generator=generator) % len(setting.noise)
    names = shuffled(pairs.name_index, source, setting.noise, generator)
    images = marked(pairs.images, torch.tensor(marks)[source])
    occurring, name_index = names.unique(return_inverse=True)
    kept = [pairs.names[i] for i in occurring.tolist()]
    return Pairs(images, pairs.tokens[occurring], kept, name_index)


def _with_long_tail(size: int, seed: int) -> Data:
    """Pairs whose names are drawn by Zipf's law from all of the training fonts; held out: seen names, unseen names."""
    data = load(TRAINING_PAIRS, seed)
    train = data.splits["train"]
    generator = torch.Generator().manual_seed(4_000 + seed)
    rank = torch.randperm(len(train.names), generator=generator)
    weight = 1.0 / (1.0 + rank[train.name_index].double())
    chosen = torch.multinomial(weight, size, generator=generator).sort().values
    kept = train.name_index[chosen].unique()
    seen = {train.names[i] for i in kept.tolist()}
    splits = {}
    for name, pairs in data.splits.items():
        if name == "train":
            part = chosen
        elif name.endswith("_unseen"):
            part = torch.arange(len(pairs))
        else:
            known = torch.tensor([each in seen for each in pairs.names])
            part = known[pairs.name_index].nonzero()[:, 0]
        splits[name] = _part(pairs, part)
    return Data(splits, data.vocabulary)


def _part(pairs: Pairs, rows: Tensor) -> Pairs:
    """Some of the pairs, with the names that occur in them."""
    occurring, name_index = pairs.name_index[rows].unique(return_inverse=True)
    names = [pairs.names[i] for i in occurring.tolist()]
    return Pairs(pairs.images[rows], pairs.tokens[occurring], names, name_index)


#: All of the training fonts' pairs, to the thousand.
TRAINING_PAIRS = 31_000
