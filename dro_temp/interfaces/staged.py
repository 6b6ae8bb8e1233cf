"""Memory that outlives a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from dro_temp._checks import check_index

_ROUNDED = (torch.float16, torch.bfloat16)


class Staged(nn.Module, ABC):
    """Memory that forward reads and an optimizer step writes.

    A second forward, a step that a gradient scaler skipped, validation: none of them may change it. A leaf
    makes its tables with `remember`, calls `stage` in forward or backward and fills in `write`; it goes through
    `read` and `put`, which know where the tables are.
    """

    #: Names of the buffers or parameters that remember; they are never rounded below float32.
    memory: tuple[str, ...] = ()
    #: True if the tables stay in host memory wherever the module goes; a leaf sets it before `remember`.
    on_host: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._staged: list[tuple[Tensor, ...]] = []
        self._device = torch.get_default_device()  # where the module is; with on_host, its tables are not

    def remember(self, name: str, num_samples: int, start: float) -> None:
        """Make a table of one float32 number per sample, a persistent buffer.

        Args:
            name: one of `memory`.
            num_samples: size of the data set.
            start: what every entry holds at first.
        """
        # Pinned from the start: pinning it later would hold the table twice. Torch rounds pinned memory up to a
        # power of two, unless PYTORCH_ALLOC_CONF sets pinned_max_round_threshold_mb (where torch knows it).
        place: dict[str, Any] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        table = torch.full((num_samples,), start, dtype=torch.float32, **(place if self.on_host else {}))
        self.register_buffer(name, table)

    def check(self, index: Tensor) -> None:
        """Raise where a sample number is outside the tables."""
        if self.memory:
            check_index(index, min(len(getattr(self, name)) for name in self.memory))

    def read(self, name: str, index: Tensor) -> Tensor:
        """Entries of a table: where the table is, or, with `on_host`, where the index is."""
        table: Tensor = getattr(self, name)
        entries = table[index.to(table.device)]
        if not self.on_host or index.device == table.device:
            return entries
        # Only from pinned memory does a copy not wait. What travels is a copy of the entries: a later `put`
        # cannot overtake it.
        return _pinned(entries).to(index.device, non_blocking=True)

    def read_nothing(self, name: str) -> Tensor:
        """No entries, on the device where entries go: what a process gives that has nothing for the others."""
        return self.read(name, torch.empty(0, dtype=torch.long, device=self._device))

    def put(self, name: str, index: Tensor, values: Tensor) -> None:
        """Overwrite entries of a table, wherever it is; rows with one index must agree."""
        table: Tensor = getattr(self, name)
        table[index.to(table.device)] = values.to(table)  # waits: the host must not read what has not arrived

    @property
    def expects_proposals(self) -> bool:
        """True if every training step proposes something; a step without is then an error."""
        return True

    @property
    def staged(self) -> list[tuple[Tensor, ...]]:
        """What was proposed since the last commit, oldest first; never part of the saved state."""
        return self._staged

    @property
    def pending(self) -> bool:
        """True while there are proposals that were neither committed nor discarded."""
        return bool(self.staged)

    def stage(self, *proposal: Tensor) -> None:
        """Propose; all proposals between two commits have the same parts."""
        self.staged.append(tuple(part.detach() for part in proposal))

    @abstractmethod
    def write(self, *parts: Tensor) -> None:
        """Write the concatenated parts of all proposals; none are passed if nothing was proposed."""

    @final
    @torch.no_grad()
    def commit(self) -> None:
        """Write what was proposed; a parameter step was taken."""
        self.write(*(torch.cat(parts) for parts in zip(*self.staged, strict=True)))
        self.staged.clear()

    @final
    def discard(self, keep: int = 0) -> None:
        """Forget what was proposed, except the oldest `keep`; the step was skipped, or the forward failed."""
        del self.staged[keep:]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Staged":
        tables = self._tables()

        def spare(x: Tensor) -> Tensor:
            return x if any(x is table for table in tables.values()) else fn(x)

        super()._apply(spare, recurse)  # type: ignore[no-untyped-call]
        for name, table in tables.items():
            self._buffers[name] = self._moved(table, fn)
        return self

    def _moved(self, table: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        # model.bfloat16() must not round the memory: near 100, bfloat16 numbers are 0.5 apart.
        if not self.on_host:
            moved = fn(table)
            return table.to(moved.device) if moved.dtype in _ROUNDED else moved
        # An empty stand-in tells where fn leads; the table itself might not fit there.
        moved = fn(table.new_empty(0, device=self._device))
        self._device = moved.device
        return table if moved.dtype in _ROUNDED else _pinned(table.to(moved.dtype))

    def _tables(self) -> dict[str, Tensor]:
        # Memory that is a parameter is none of them: it moves as all parameters do.
        buffers = {name: self._buffers.get(name) for name in self.memory}
        return {name: table for name, table in buffers.items() if table is not None}

    def _back_to_host(self) -> None:
        """A table may come from elsewhere: `load_state_dict(assign=True)`, `torch.load(map_location=...)`, a copy."""
        if self.on_host:
            self._buffers.update({name: _pinned(table.cpu()) for name, table in self._tables().items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.memory:
            loaded, ours = state_dict.get(prefix + name), getattr(self, name, None)
            if loaded is not None and ours is not None and loaded.shape != ours.shape:
                raise ValueError(
                    f"expected the memory of {ours.numel()} samples at {prefix}{name}, received one of "
                    f"{loaded.numel()}. Build {type(self).__name__}({loaded.numel()}, ...) for the data set that it "
                    "was saved with, or delete the key and load with strict=False to start afresh."
                )
        self.discard()
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]
        self._back_to_host()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without proposals: those belong to the forward that made them."""
        return {**self.__dict__, "_staged": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies of pinned memory are not pinned."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._back_to_host()


def _pinned(x: Tensor) -> Tensor:
    return x.pin_memory() if torch.cuda.is_available() else x


def staged_modules(modules: Iterable[nn.Module]) -> list[Staged]:
    """Those of the modules that hold staged memory.

    Example:
        >>> import dro_temp as dt
        >>> loss = dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(100))
        >>> staged_modules(loss.modules())
        [LogMovingAverage(100)]
    """
    return [module for module in modules if isinstance(module, Staged)]
