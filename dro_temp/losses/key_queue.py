"""A queue of the keys of recent samples, and of their queries."""

import torch
from torch import Tensor

from dro_temp._checks import check_count, check_flag
from dro_temp._typing import Features, RowIndex
from dro_temp.state import Staged

#: The number of a key whose sample has none.
UNNUMBERED = -1


class KeyQueue(Staged):
    """Keys of the last `size` samples, with the samples' numbers; an optimizer step appends the staged ones.

    Args:
        size: number of keys.
        features: width of a key.
        queries: whether to store each key's query as well; zeros where there is none.

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

    expects_proposals = False  # rows whose scores are a matrix propose nothing

    keys: Features
    queries: Features
    number: RowIndex
    seen: Tensor

    def __init__(self, size: int, features: int, *, queries: bool = False) -> None:
        super().__init__()
        self.size, self.features = check_count("size", size), check_count("features", features)
        check_flag("queries", queries)
        #: Buffers with an entry per sample, in the order in which they are staged.
        self.entries = ("keys", "queries", "number") if queries else ("keys", "number")
        self.memory = (*self.entries, "seen")
        for name in self.entries[:-1]:
            self.register_buffer(name, torch.zeros(size, features))
        self.register_buffer("number", torch.full((size,), UNNUMBERED))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return min(int(self.seen), self.size)

    def check(self, index: Tensor) -> None:
        """Nothing to check: a sample number is not a position in the queue."""

    def write(self, *parts: Tensor) -> None:
        """Overwrite the oldest entries by the newest."""
        if not parts:
            return
        total = len(parts[0])
        newest = [x[-self.size :] for x in parts]
        first = self.seen + total - len(newest[0])
        position = (first + torch.arange(len(newest[0]), device=first.device)) % self.size
        for name, x in zip(self.entries, newest, strict=True):
            buffer: Tensor = getattr(self, name)
            buffer[position] = x.to(buffer)
        self.seen += total

    def others(self, number: RowIndex, but: RowIndex | None = None) -> Tensor | None:
        """True for keys of samples other than these, and at the positions `but`; None if that is everywhere."""
        same_sample = torch.isin(self.number, number[number != UNNUMBERED])
        if but is not None:
            same_sample[but] = False
        return ~same_sample if bool(same_sample.any()) else None

    def drawn(self, count: int) -> RowIndex:
        """Positions of at most `count` distinct samples that have a query.

        The same on every process and after a resume, without using the global generator: the seed is the number of keys
        seen.
        """
        generator = torch.Generator().manual_seed(int(self.seen))
        draws = torch.randint(self.size, (count,), generator=generator)
        position: RowIndex = torch.unique(draws).to(self.number.device)  # type: ignore[no-untyped-call]
        number = self.number[position]
        repeated = (number[:, None] == number).tril(-1).any(1) & (number != UNNUMBERED)
        return position[~repeated & self.queries[position].any(1)]

    def extra_repr(self) -> str:
        """Size and width."""
        return f"size={self.size}, features={self.features}"
