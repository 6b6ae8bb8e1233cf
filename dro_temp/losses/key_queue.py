"""The keys of the last samples, and the queries that went with them."""

import torch
from torch import Tensor

from dro_temp._checks import check_count, check_flag
from dro_temp._typing import Features, RowIndex
from dro_temp.state import Staged

#: A key whose sample has no name; no sample has this number.
NAMELESS = -1


class KeyQueue(Staged):
    """Keys of the last `size` samples, and whose they are; an optimizer step lets the newest in.

    Args:
        size: number of keys.
        features: their width.
        queries: whether each key's query is kept beside it; zeros where there was none.

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

    keys: Features
    queries: Features
    number: RowIndex
    seen: Tensor

    def __init__(self, size: int, features: int, *, queries: bool = False) -> None:
        super().__init__()
        self.size, self.features = check_count("size", size), check_count("features", features)
        check_flag("queries", queries)
        #: What is kept of each sample, in the order in which it is staged.
        self.kept = ("keys", "queries", "number") if queries else ("keys", "number")
        self.memory = (*self.kept, "seen")
        for name in self.kept[:-1]:
            self.register_buffer(name, torch.zeros(size, features))
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
        newest = [x[-self.size :] for x in parts]
        first = self.seen + total - len(newest[0])
        place = (first + torch.arange(len(newest[0]), device=first.device)) % self.size
        for name, x in zip(self.kept, newest, strict=True):
            held: Tensor = getattr(self, name)
            held[place] = x.to(held)
        self.seen += total

    def others(self, number: RowIndex, but: RowIndex | None = None) -> Tensor | None:
        """True for the keys of other samples than these, and for those at some places; None where all are."""
        theirs = torch.isin(self.number, number[number != NAMELESS])
        if but is not None:
            theirs[but] = False
        return ~theirs if bool(theirs.any()) else None

    def drawn(self, count: int) -> RowIndex:
        """Places of at most `count` samples, each once, that have a query.

        The same on every process and after a resume, and nothing that the training draws is disturbed: the generator
        is seeded by what was seen.
        """
        generator = torch.Generator().manual_seed(int(self.seen))
        drawn = torch.randint(self.size, (count,), generator=generator)
        place: RowIndex = torch.unique(drawn).to(self.number.device)  # type: ignore[no-untyped-call]
        number = self.number[place]
        again = (number[:, None] == number).tril(-1).any(1) & (number != NAMELESS)
        return place[~again & self.queries[place].any(1)]

    def extra_repr(self) -> str:
        """Size and width."""
        return f"size={self.size}, features={self.features}"
