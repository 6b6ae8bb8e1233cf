"""The keys of the last samples."""

import torch
from torch import Tensor

from dro_temp._checks import check_count
from dro_temp._typing import Features, RowIndex
from dro_temp.interfaces import Staged

#: A key whose sample nobody named; no sample has this number.
NAMELESS = -1


class KeyQueue(Staged):
    """Keys of the last `size` samples, and whose they are; an optimizer step lets the newest in.

    Args:
        size: number of keys.
        features: their width.

    Raises:
        ValueError: a size or a width below one.

    Example:
        >>> import torch
        >>> queue = KeyQueue(3, 2)
        >>> queue.stage(torch.randn(5, 2), torch.arange(5))
        >>> len(queue), queue.commit(), sorted(queue.number.tolist())
        (0, None, [2, 3, 4])

    Source: arXiv 1911.05722 (MoCo).
    """

    memory = ("keys", "number", "seen")
    keys: Features
    number: RowIndex
    seen: Tensor

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        self.size, self.features = check_count("size", size), check_count("features", features)
        self.register_buffer("keys", torch.zeros(size, features))
        self.register_buffer("number", torch.full((size,), NAMELESS))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        """Number of keys that are held."""
        return min(int(self.seen), self.size)

    @property
    def expects_proposals(self) -> bool:
        """Rows whose scores were given as a matrix propose nothing."""
        return False

    def check(self, index: Tensor) -> None:
        """Any sample number will do: it is a name, not a place."""

    def write(self, *parts: Tensor) -> None:
        """The newest keys take the places of the oldest."""
        if not parts:
            return
        total = len(parts[0])
        keys, number = (x[-self.size :] for x in parts)
        first = self.seen + total - len(keys)
        place = (first + torch.arange(len(keys), device=first.device)) % self.size
        self.keys[place] = keys.to(self.keys)
        self.number[place] = number.to(self.number)
        self.seen += total

    def extra_repr(self) -> str:
        """Size and width."""
        return f"size={self.size}, features={self.features}"
