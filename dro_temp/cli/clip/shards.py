"""Pairs in webdataset shards, in an order that a run resumes at any batch."""

import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dro_temp import distributed
from dro_temp.cli.images import Labelled, all_of
from dro_temp.cli.loader import random_state, seed_of
from dro_temp.cli.messages import in_one_line, require
from dro_temp.datasets import SampleTable

_IMAGES = ("jpg", "jpeg", "png", "webp")
_SHUFFLED = 1000  # samples of a shard's stream that wait to be drawn
_ENTRIES = 4  # of the table of sample numbers, for each pair in shards


def is_shards(source: str) -> bool:
    """Whether a source is webdataset shards: its name ends with .tar, or it is a command that writes one."""
    return source.endswith((".tar", ".tar.gz", ".tgz")) or source.startswith("pipe:")


def urls_of(source: str, option: str = "--data") -> list[str]:
    """The shards of a pattern with braces, "pairs-{000..009}.tar", or with wildcards, "pairs-*.tar"."""
    found: list[str] = []
    for pattern in require("webdataset").shardlists.expand_urls(source):
        if "://" in pattern or pattern.startswith("pipe:"):
            found.append(pattern)
            continue
        path = Path(pattern).expanduser()
        here = sorted(path.parent.glob(path.name)) if any(c in path.name for c in "*?[") else [path]
        missing = [place for place in here if not place.is_file()]
        if missing or not here:
            raise ValueError(
                f"expected shards, received {option} {source}, of which {str((missing or [path])[0])!r} is not there. "
                f"Check the path, which is relative to {Path.cwd()}."
            )
        found += [str(place) for place in here]
    return found


def number_of(urls: list[str], option: str = "--samples") -> int:
    """Pairs in shards on this machine, from their lists of files; raises for shards elsewhere."""
    keys: set[tuple[str, str]] = set()
    for url in urls:
        if "://" in url or url.startswith("pipe:"):
            raise ValueError(
                f"expected the number of pairs in shards that are not on this machine, received {url!r} without "
                f"{option}. Pass {option} 1000000, say: as many as an epoch is to have."
            )
        try:
            with tarfile.open(url) as archive:
                keys |= {
                    (url, member.name.partition(".")[0]) for member in archive if member.name.endswith(".txt")
                }
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(
                f"expected a tar file in {url!r}, received one that cannot be read ({in_one_line(error)}). Copy it "
                "again, or leave it out of --data."
            ) from error
    if not keys:
        raise ValueError(
            f"expected images with captions in {urls[0]!r}, received no .txt file. Write shards with files such as "
            "000001.jpg and 000001.txt."
        )
    return len(keys)


def first_of_shards(urls: list[str], most: int) -> Labelled:
    """The first pairs of shards, decoded, for validation."""
    found = list(islice((_decoded(sample) for sample in _complete(urls)), most))
    images, captions, names = zip(*found, strict=True) if found else ((), (), ())
    return all_of(Decoded(images, names), captions)


class Decoded:
    """Images in memory."""

    def __init__(self, images: Sequence[Any], names: Sequence[str]) -> None:
        self.images, self.names = images, names

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        """One image."""
        return self.images[index]

    def name(self, index: int) -> str:
        """Shard and key."""
        return self.names[index]


def _complete(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Samples of shards, not decoded, that have an image and a caption."""
    for sample in require("webdataset").tarfile_to_samples()({"url": url} for url in urls):
        if "txt" in sample and any(suffix in sample for suffix in _IMAGES):
            yield sample


def _decoded(sample: dict[str, Any]) -> tuple[Any, str, str]:
    """Image, caption, and a key that no sample of another shard has."""
    suffix = next(suffix for suffix in _IMAGES if suffix in sample)
    image = require("webdataset").autodecode.ImageHandler("pilrgb")(suffix, sample[suffix])
    shard = Path(str(sample["__url__"])).name
    return image, sample["txt"].decode("utf-8").strip(), f"{shard}/{sample['__key__']}"


class ShardEpochs:
    """Batches of webdataset shards: each process, and each of its workers, reads shards of its own.

    Their order, and that in which samples are drawn from a buffer, depends on seed and epoch alone. A resumed run
    reads again, without decoding, what it has trained on in the epoch. Sample numbers are hashes of shard and key.

    Args:
        urls: the shards.
        samples: pairs in an epoch, of all processes.
        batch: pairs in a batch, per process.
        transform: of an image.
        other: of a caption.
        seed: of everything random.
        workers: processes that load.
    """

    def __init__(
        self,
        urls: list[str],
        samples: int,
        batch: int,
        transform: Callable[[Any], Any],
        other: Callable[[str], Any],
        seed: int,
        workers: int,
    ) -> None:
        self.workers, processes = workers, distributed.world_size()
        self.stream = _Stream(urls, SampleTable(_ENTRIES * samples), batch, transform, other, seed)
        self.numbers = len(self.stream.table)
        self.steps = samples // (batch * processes)
        if self.steps == 0:
            raise ValueError(
                f"expected at least one batch of {batch * processes} pairs, received {samples}. Pass more shards, or a "
                "smaller --batch."
            )
        readers = processes * max(1, workers)
        if len(urls) < readers:
            raise ValueError(
                f"expected a shard for each of {readers} readers ({processes} processes of {max(1, workers)} workers), "
                f"received {len(urls)}. Pass --workers {len(urls) // processes}, or write more and smaller shards."
            )

    def batches(self, epoch: int, first: int) -> Iterable[tuple[Any, ...]]:
        """Batches of an epoch from this one on."""
        part = self.stream.part(epoch, first, self.steps)
        loader: DataLoader[Any] = DataLoader(
            part,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            # Of its own: one more draw from the global one, and a resumed run would drop out other units.
            generator=torch.Generator(),
        )
        return loader


class _Stream(IterableDataset[Any]):
    """The batches of an epoch from one on, as each of its readers makes them."""

    epoch = first = steps = 0

    def __init__(
        self,
        urls: list[str],
        table: SampleTable,
        batch: int,
        transform: Callable[[Any], Any],
        other: Callable[[str], Any],
        seed: int,
    ) -> None:
        self.urls, self.table, self.batch, self.seed = urls, table, batch, seed
        self.transform, self.other = transform, other

    def part(self, epoch: int, first: int, steps: int) -> "_Stream":
        """The same stream in another place."""
        part = _Stream(self.urls, self.table, self.batch, self.transform, self.other, self.seed)
        part.epoch, part.first, part.steps = epoch, first, steps
        return part

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        info = get_worker_info()
        workers = 1 if info is None else info.num_workers
        # Step k is that of reader k modulo their number, wherever the run resumes; a loader starts with worker 0.
        mine = (self.first + (0 if info is None else info.id)) % workers
        steps = range(mine, self.steps, workers)
        taken = len(range(mine, self.first, workers))
        samples = self._samples(distributed.rank() * workers + mine, distributed.world_size() * workers)
        for _ in islice(samples, taken * self.batch):
            pass
        for _ in steps[taken:]:
            images, texts, numbers = zip(*map(self._made, islice(samples, self.batch)), strict=True)
            yield torch.stack(images), torch.stack(texts), torch.tensor(numbers)

    def _samples(self, reader: int, readers: int) -> Iterator[dict[str, Any]]:
        """Without end: where a reader's shards end before the epoch does, it reads them again in another order."""
        order = random.Random(seed_of("shards", self.seed, self.epoch)).sample(self.urls, len(self.urls))
        urls = order[reader::readers]
        for again in count(0):
            rng = random.Random(seed_of("stream", self.seed, self.epoch, reader, again))
            shuffled = require("webdataset").filters.shuffle(_SHUFFLED, rng=rng)
            empty = True
            for sample in shuffled(_complete(rng.sample(urls, len(urls)))):
                yield sample
                empty = False
            if empty:
                raise ValueError(
                    f"expected images with captions in {urls}, received none. Write shards with files such as "
                    "000001.jpg and 000001.txt."
                )

    def _made(self, sample: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
        image, caption, key = _decoded(sample)
        with random_state(seed_of("transform", self.seed, self.epoch, key)):
            return self.transform(image), self.other(caption), self.table(key)
