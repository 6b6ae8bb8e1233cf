"""Batches in an order that depends on seed, epoch and position alone, so that a run resumes at any of them."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dro_temp import distributed


class Items(Protocol):
    """Samples by position: what an image and its other half are made of."""

    def __len__(self) -> int:
        """Number of samples."""

    def item(self, index: int) -> tuple[Any, Any]:
        """An image, which the transform takes, and what belongs to it."""


class Epochs(Protocol):
    """The data of a training."""

    #: Optimizer steps in an epoch.
    steps: int
    #: Sample numbers are below this.
    numbers: int

    def batches(self, epoch: int, first: int) -> Iterable[tuple[Any, ...]]:
        """Batches of an epoch from this one on; the last part of each are the samples' numbers."""


def seed_of(*key: object) -> int:
    """A seed that depends on the key alone."""
    return random.Random(" ".join(map(str, key))).getrandbits(60)


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's random numbers from this seed on; those of before go on afterwards."""
    import numpy

    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        numpy.random.set_state(before[1])
        torch.set_rng_state(before[2])


class Transformed(Dataset[Any]):
    """Samples ready for a batch: (image, other, index), by (epoch, index).

    What a transform draws depends on seed, epoch and sample: not on the number of workers, nor on what ran before.

    Args:
        items: the samples.
        transform: of an image.
        other: of what belongs to it.
        seed: of the random transforms; None where there are none.
    """

    def __init__(
        self,
        items: Items,
        transform: Callable[[Any], Any],
        other: Callable[[Any], Any],
        seed: int | None = None,
    ) -> None:
        self.items, self.transform, self.other, self.seed = items, transform, other, seed

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.items)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Any, Any, int]:
        """The sample of a place."""
        epoch, index = place
        image, other = self.items.item(index)
        if self.seed is None:
            return self.transform(image), self.other(other), index
        with random_state(seed_of("transform", self.seed, epoch, index)):
            return self.transform(image), self.other(other), index


class _Order(Sampler[list[tuple[int, int]]]):
    """The batches of this process in an epoch, from one on."""

    def __init__(self, samples: int, batch: int, seed: int, epoch: int, first: int) -> None:
        self.samples, self.batch, self.seed, self.epoch, self.first = samples, batch, seed, epoch, first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, self.epoch))
        order = torch.randperm(self.samples, generator=generator)
        processes, rank = distributed.world_size(), distributed.rank()
        together = self.batch * processes
        for start in range(self.first * together, len(order) - together + 1, together):
            mine = order[start + rank * self.batch : start + (rank + 1) * self.batch]
            yield [(self.epoch, index) for index in mine.tolist()]

    def __len__(self) -> int:
        return self.samples // (self.batch * distributed.world_size()) - self.first


class ShuffledEpochs:
    """Batches of a map-style data set, shuffled anew in each epoch; what does not fill a batch is left out.

    Args:
        dataset: by (epoch, index).
        batch: samples in a batch, per process.
        seed: of the order.
        workers: processes that load.
    """

    def __init__(self, dataset: Transformed, batch: int, seed: int, workers: int) -> None:
        self.dataset, self.batch, self.seed, self.workers = dataset, batch, seed, workers
        self.numbers = len(dataset)
        together = batch * distributed.world_size()
        self.steps = self.numbers // together
        if self.steps == 0:
            raise ValueError(
                f"expected at least one batch of {together} samples, received {self.numbers} samples. Pass more: "
                f"--data, or --batch {max(self.numbers // distributed.world_size(), 2)} or less."
            )

    def batches(self, epoch: int, first: int) -> Iterable[tuple[Any, ...]]:
        """Batches of an epoch from this one on."""
        order = _Order(self.numbers, self.batch, self.seed, epoch, first)
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=order,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            # Of its own: one more draw from the global one, and a resumed run would drop out other units.
            generator=torch.Generator(),
        )
        return loader


def in_order(dataset: Transformed, batch: int, workers: int = 0) -> DataLoader[Any]:
    """All samples once, in their order."""
    places: Any = [[(0, i) for i in part] for part in _parts(len(dataset), batch)]
    return DataLoader(dataset, batch_sampler=places, num_workers=workers)


def _parts(n: int, size: int) -> list[range]:
    return [range(start, min(start + size, n)) for start in range(0, n, size)]
