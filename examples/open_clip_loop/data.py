"""Pairs of an image and a text, whose numbers travel in the texts: glyphs, a CSV file, or webdataset shards."""

from collections.abc import Callable, Mapping
from typing import Any

import torchvision.transforms.v2.functional as images
import webdataset as wds
from open_clip import SimpleTokenizer
from open_clip_train.data import CsvDataset, DataInfo, SharedEpoch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from dro_temp import distributed
from dro_temp.datasets import GlyphCaptions, SampleTable
from dro_temp.integrations.open_clip import NumberedStream, NumberedTexts

from .config import Options

SIZE, LENGTH = 32, 16  # pixels, tokens
TOKENIZER = SimpleTokenizer(context_length=LENGTH)


def as_tensor(image: Image.Image) -> Tensor:
    """[3 32 32] in [0, 1]."""
    return images.pil_to_tensor(image.convert("RGB").resize((SIZE, SIZE))).float() / 255


def as_tokens(text: str) -> Tensor:
    """[16]."""
    return TOKENIZER(text)[0]


class Glyphs(Dataset[tuple[Tensor, Tensor]]):
    """Glyphs as images of three channels, with the tokens of their names."""

    def __init__(self, size: int) -> None:
        self.glyphs = GlyphCaptions("train", size=size)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.glyphs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and tokens."""
        image, caption, _ = self.glyphs[index]
        return image.expand(3, -1, -1), as_tokens(caption)


def of_files(dataset: Any, batch_size: int, eval_pairs: int) -> tuple[dict[str, DataInfo], int]:
    """Loaders over a map-style data set, and its size; a sample's number is its position."""
    sampler = DistributedSampler(dataset, distributed.world_size(), distributed.rank(), seed=0)
    train = DataLoader(NumberedTexts(dataset), batch_size, sampler=sampler, drop_last=True)
    some = Subset(dataset, range(min(eval_pairs, len(dataset))))
    infos = {"train": DataInfo(train, sampler), "val": DataInfo(DataLoader(some, batch_size))}
    for info, pairs in zip(infos.values(), (len(dataset), len(some)), strict=True):
        info.dataloader.num_samples, info.dataloader.num_batches = pairs, len(info.dataloader)
    return infos, len(dataset)


def of_csv(path: str, batch_size: int, eval_pairs: int) -> tuple[dict[str, DataInfo], int]:
    """open_clip's own CSV data set: the columns filepath and title, separated by commas."""
    dataset = CsvDataset(path, as_tensor, "filepath", "title", sep=",", tokenizer=TOKENIZER)
    return of_files(dataset, batch_size, eval_pairs)


def of_shards(shards: str, size: int, batch_size: int, eval_pairs: int) -> tuple[dict[str, DataInfo], int]:
    """Loaders over shards with png or jpg and txt, and the size of the table that their keys are hashed into."""
    table = SampleTable(4 * size)
    batches = size // (batch_size * distributed.world_size())
    drawn = wds.WebDataset(shards, resampled=True)  # each process has its own shards
    stream = _batches(drawn.shuffle(1000), NumberedStream(table), batch_size).with_epoch(batches)
    train = wds.WebLoader(stream, batch_size=None)
    # Only one process evaluates, on all shards.
    plain = wds.WebDataset(shards, nodesplitter=iter).slice(eval_pairs)
    val = wds.WebLoader(_batches(plain, dict, batch_size), batch_size=None)
    infos = {"train": DataInfo(train, shared_epoch=SharedEpoch()), "val": DataInfo(val)}
    for info, pairs in zip(infos.values(), (size, eval_pairs), strict=True):
        info.dataloader.num_samples, info.dataloader.num_batches = pairs, batches
    return infos, len(table)


def _batches(stream: Any, number: Callable[[Mapping[str, Any]], dict[str, Any]], batch_size: int) -> Any:
    stream = stream.decode("pil").rename(image="png;jpg;jpeg;webp", text="txt")
    stream = stream.map_dict(image=as_tensor, text=as_tokens).map(number)
    return stream.to_tuple("image", "text").batched(batch_size)


def load(o: Options) -> tuple[dict[str, DataInfo], int]:
    """Loaders "train" and "val", and the number of sample numbers."""
    if o.csv is not None:
        return of_csv(str(o.csv), o.batch_size, o.eval_pairs)
    if o.shards is not None:
        return of_shards(o.shards, o.size, o.batch_size, o.eval_pairs)
    return of_files(Glyphs(o.size), o.batch_size, o.eval_pairs)
