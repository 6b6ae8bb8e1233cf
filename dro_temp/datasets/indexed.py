"""Numbers for samples, as estimators and tables per sample need them: by place, or by a hash of a key."""

import math
import operator
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset, IterableDataset

from dro_temp._checks import check_count
from dro_temp._typing import RowIndex
from dro_temp.datasets._samples import check_number

SampleKey: TypeAlias = str | bytes | int


class Indexed(Dataset[Any]):
    """A map-style data set whose items end with their own number.

    A tuple becomes `(*item, index)`, a dict gains the key `index`, and anything else becomes `(item, index)`.

    Args:
        dataset: anything with `__len__` and `__getitem__`.

    Raises:
        TypeError: an iterable-style data set, whose samples have no number.

    Example:
        >>> Indexed([("image", "text")])[0]
        ('image', 'text', 0)
        >>> Indexed([{"pixels": 1.0}])[0]
        {'pixels': 1.0, 'index': 0}
    """

    def __init__(self, dataset: Any) -> None:
        map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        # torch's IterableDataset inherits a __getitem__ that only raises.
        if isinstance(dataset, IterableDataset) or not map_style:
            raise TypeError(
                "expected a map-style data set with __len__ and __getitem__, received "
                f"{type(dataset).__name__}, whose samples have no number. Pass Indexed(list(dataset)) if it fits in "
                "memory, or let the stream yield a number of its own that is the same in every epoch."
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """The item and its number, counted from 0 even where `index` is negative.

        Raises:
            IndexError: `index` is not in [-len, len).
            KeyError: the item is a dict that has the key `index` already.
        """
        index = operator.index(index)
        index = index + len(self) if -len(self) <= index < 0 else check_number(index, len(self))
        item = self.dataset[index]
        if isinstance(item, dict):
            if "index" in item:
                raise KeyError(
                    "expected items without the key 'index', received one with the keys "
                    f"{', '.join(map(str, item))}. Use that key as it is, or rename it before wrapping."
                )
            return {**item, "index": index}
        return (*item, index) if isinstance(item, tuple) else (item, index)

    def __repr__(self) -> str:
        return f"Indexed({self.dataset!r})"


class SampleTable:
    r"""A number from 0 to size - 1 for every key: a hash that is the same on every process, machine and run.

    An estimator or a table of temperatures of `size` entries then serves a stream of samples. Two samples may
    share an entry: of n samples, the share $1 - (1 - 1/\mathrm{size})^{n-1} \approx 1 - e^{-n/\mathrm{size}}$
    shares one with another. The moving average of a shared entry lies between what the samples alone would have,
    and the gradient's weights $g_i / u$ move with it: the sample with the larger inner mean $g_i$ counts for more,
    its partner for less, and none for more than $1/\gamma$. With all samples in one entry, the loss becomes
    $\tau \log \frac1n \sum_i g_i$ in place of $\frac1n \sum_i \tau \log g_i$. A table costs 4 bytes per entry and
    side; make it as large as memory allows.

    A string, its UTF-8 bytes, and the integer that it spells have the same number: a key may be read back as any
    of them.

    Args:
        size: number of entries, of the order of the number of samples or larger.

    Raises:
        TypeError: a key that is not a str, bytes or int.
        ValueError: size < 1.

    Example:
        >>> table = SampleTable(1_000_000)
        >>> table("shard-000012/000345")
        248260
        >>> table.numbers(["a", b"a", 7, "7"])
        tensor([292928, 292928, 377255, 377255])
        >>> round(table.colliding_share(1_000_000), 3)
        0.632

    Source: the hash is BLAKE2b (RFC 7693), its first 8 bytes as a little-endian integer, modulo size.
    """

    def __init__(self, size: int) -> None:
        self.size = check_count("size", size)

    def __call__(self, key: SampleKey) -> int:
        """The number of one key."""
        if isinstance(key, str):
            key = key.encode("utf-8", "surrogatepass")  # names in archives need not be valid text
        elif not isinstance(key, bytes):
            if isinstance(key, bool) or not hasattr(key, "__index__"):
                raise TypeError(
                    f"expected a key as str, bytes or int, received {type(key).__name__} ({key!r}). Pass what names "
                    "the sample in every epoch: sample['__key__'], its URL or its number."
                )
            key = str(operator.index(key)).encode()
        return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") % self.size

    def numbers(self, keys: Iterable[SampleKey]) -> RowIndex:
        """The numbers of many keys, int64.

        Raises:
            TypeError: one string in place of many.
        """
        if isinstance(keys, (str, bytes)):
            raise TypeError(
                f"expected many keys, received one {type(keys).__name__} ({keys!r}). Write table({keys!r})."
            )
        return torch.tensor([self(key) for key in keys], dtype=torch.int64)

    def colliding_share(self, samples: int) -> float:
        """Expected share of so many samples that share an entry with another one."""
        others = check_count("samples", samples) - 1
        return -math.expm1(others * math.log1p(-1.0 / self.size)) if self.size > 1 else float(others > 0)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"SampleTable({self.size})"
