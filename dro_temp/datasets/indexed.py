"""Samples that know their number."""

import operator
from typing import Any

from torch.utils.data import Dataset, IterableDataset


class Indexed(Dataset[Any]):
    """A map-style data set whose items end with their own number, as estimators and tables per sample need it.

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
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """The item and its number, counted from 0 even where `index` is negative.

        Raises:
            IndexError: `index` is not in [-len, len).
            KeyError: the item is a dict that has the key `index` already.
        """
        asked, index = index, operator.index(index)
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(
                f"expected a sample number from 0 to {len(self) - 1}, received {asked}. Pass a smaller one."
            )
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
        """What is wrapped."""
        return f"Indexed({self.dataset!r})"
