"""Memory between steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from dro_temp import _faults
from dro_temp._checks import check_count, check_flag, check_index, check_kind
from dro_temp._loading import ShapeChecked

_ROUNDED = (torch.float16, torch.bfloat16)


class Staged(ShapeChecked, ABC):
    """Memory that forward reads and an optimizer step writes.

    A second forward, a step that a gradient scaler skipped, validation: none of them may change it. A subclass
    creates its tables with `remember`, calls `stage` in forward or backward and implements `write`; it uses `read` and
    `put`, which handle the tables' device.
    """

    #: Names of the buffers or parameters with memory; they are never rounded below float32.
    memory: tuple[str, ...] = ()
    #: True if the tables stay in host memory on every device; a subclass sets it before `remember`.
    on_host: bool = False
    #: True if every proposal adds to the memory; otherwise rows that are proposed twice count as once.
    appends: bool = False

    def __init__(self) -> None:
        super().__init__()
        #: Proposals since the last commit, oldest first; never part of the saved state.
        self.staged: list[tuple[Tensor, ...]] = []
        self._starts: dict[str, float] = {}
        self._device = torch.get_default_device()  # of the module; with on_host, not of its tables

    def remember(self, name: str, num_samples: int, start: float) -> None:
        """Create a table of one float32 number per sample, a persistent buffer.

        Args:
            name: one of `memory`.
            num_samples: size of the data set.
            start: initial value of every entry.
        """
        # Pinned from the start: pinning later would take the memory twice. Torch rounds pinned memory up to a power of
        # two, unless PYTORCH_ALLOC_CONF sets pinned_max_round_threshold_mb (in versions that support it).
        on_host: dict[str, Any] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        table = torch.full((num_samples,), start, dtype=torch.float32, **(on_host if self.on_host else {}))
        self.register_buffer(name, table)
        self._starts[name] = start

    def resize_tables(self, num_samples: int) -> None:
        """Resize the tables of `remember` to what `check_resize` returned: new entries get the initial value."""
        for name, start in self._starts.items():
            table = grown(getattr(self, name), num_samples, start)
            self._buffers[name] = _pinned(table) if self.on_host else table

    def check_resize(
        self, num_samples: int, *, shrink: bool, optimizer: torch.optim.Optimizer | None = None
    ) -> int:
        """Return the new size as an int, or raise if the tables cannot be resized; nothing is changed.

        Arguments and errors are those of `resize`. The optimizer must train the tables that are parameters.
        """
        num_samples = check_count("num_samples", num_samples)
        check_flag("shrink", shrink)
        size = self._size()
        if optimizer is not None:
            instead = "Pass the one that trains the table, or leave it out."
            check_kind("optimizer", optimizer, torch.optim.Optimizer, instead)
            trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if any(p.requires_grad and id(p) not in trained for p in self.memory_parameters()):
                raise ValueError(
                    f"expected the optimizer that trains this table, received one without the parameter of this "
                    f"{type(self).__name__}. Build it from objective.param_groups(lr=..., tau_lr=...), or leave it "
                    "out if there is none yet."
                )
        if self.pending:
            raise RuntimeError(
                "expected no pending proposals before a table is given another size, received some of the last "
                "forward. Call resize after optimizer.step(), or objective.discard() first."
            )
        if num_samples < size and not shrink:
            raise ValueError(
                f"expected at least the {size} samples that the table has, received num_samples={num_samples}. Pass "
                "shrink=True to forget the last ones."
            )
        return num_samples

    def memory_parameters(self) -> list[nn.Parameter]:
        """The tables that a base optimizer trains."""
        return [table for name in self.memory if (table := self._parameters.get(name)) is not None]

    def _size(self) -> int:
        """Number of samples in the tables; a subclass may have fewer tables than `memory` names."""
        return min(len(getattr(self, name)) for name in self.memory if hasattr(self, name))

    def check(self, index: Tensor) -> None:
        """Raise if a sample number is outside the tables."""
        if self.memory:
            check_index(index, self._size())

    def read(self, name: str, index: Tensor) -> Tensor:
        """Entries of a table, on its device or, with `on_host`, on that of the index."""
        table: Tensor = getattr(self, name)
        if index.is_cuda or _faults.everywhere:
            # A number outside, which is told later, must not stop the device.
            index = index.clamp(0, len(table) - 1)
        entries = table[index.to(table.device)]
        if not self.on_host or index.device == table.device:
            return entries
        # Only copies from pinned memory are asynchronous. The entries are copied: a later `put` cannot overtake them.
        return _pinned(entries).to(index.device, non_blocking=True)

    def read_nothing(self, name: str) -> Tensor:
        """No entries, on the device of entries: for a process that has nothing to gather."""
        return self.read(name, torch.empty(0, dtype=torch.long, device=self._device))

    def put(self, name: str, index: Tensor, values: Tensor) -> None:
        """Overwrite entries of a table; rows of the same index must agree, and those of a negative one are left out."""
        table: Tensor = getattr(self, name)
        valid = (index >= 0) & (index < len(table))
        if index.is_cuda or _faults.everywhere:
            # How many rows are left out is known on the device alone. They repeat what a row that counts writes, or, if
            # none does, what the table holds.
            if not len(index):
                return
            stand_in = valid.long().argmax()[None]
            at = index.index_select(0, stand_in).clamp(0, len(table) - 1)
            kept = self.read(name, at).to(values)
            value = torch.where(valid.any(), values.index_select(0, stand_in), kept)
            index, values = torch.where(valid, index, at), torch.where(valid, values, value)
        else:
            index, values = index[valid], values[valid]
        # The copy waits: the host must not read before it has arrived.
        table[index.to(table.device)] = values.to(table)

    @property
    def expects_proposals(self) -> bool:
        """True if every training step must propose something."""
        return True

    @property
    def pending(self) -> bool:
        """True while there are proposals that were neither committed nor discarded."""
        return bool(self.staged)

    def stage(self, *proposal: Tensor) -> None:
        """Propose; all proposals between two commits have the same parts."""
        self.staged.append(tuple(part.detach() for part in proposal))

    @abstractmethod
    def write(self, *parts: Tensor) -> None:
        """Write the concatenated parts of all proposals; no parts if nothing was proposed."""

    @final
    @torch.no_grad()
    def commit(self) -> None:
        """Write all proposals, after a step was taken."""
        if len(self.staged) == 1:  # nearly always, and not worth copies
            self.write(*self.staged[0])
        else:
            self.write(*(torch.cat(parts) for parts in zip(*self.staged, strict=True)))
        self.staged.clear()

    @final
    def discard(self, keep: int = 0) -> None:
        """Drop all proposals but the oldest `keep`, after a step was skipped or a forward failed."""
        del self.staged[keep:]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Staged":
        tables = self._tables()

        def apply_to_others(x: Tensor) -> Tensor:
            return x if any(x is table for table in tables.values()) else fn(x)

        super()._apply(apply_to_others, recurse)  # type: ignore[no-untyped-call]
        for name, table in tables.items():
            self._buffers[name] = self._moved(table, fn)
        return self

    def _moved(self, table: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        # model.bfloat16() must not round the memory: near 100, bfloat16 numbers are 0.5 apart.
        if not self.on_host:
            moved = fn(table)
            return table.to(moved.device) if moved.dtype in _ROUNDED else moved
        # fn is applied to an empty tensor: the table itself might not fit on its device.
        moved = fn(table.new_empty(0, device=self._device))
        self._device = moved.device
        return table if moved.dtype in _ROUNDED else _pinned(table.to(moved.dtype))

    def _tables(self) -> dict[str, Tensor]:
        # Without memory that is a parameter, which moves as all parameters do.
        return {name: table for name in self.memory if (table := self._buffers.get(name)) is not None}

    def _back_to_host(self) -> None:
        """Undo a move by `load_state_dict(assign=True)`, `torch.load(map_location=...)` or a copy."""
        if self.on_host:
            self._buffers.update({name: _pinned(table.cpu()) for name, table in self._tables().items()})

    def check_memory(self, state: Mapping[str, Any], prefix: str) -> None:
        """Raise ValueError if a state to be loaded has memory of another size; names in it start with `prefix`."""
        for name in self.memory:
            loaded, ours = state.get(prefix + name), getattr(self, name, None)
            if loaded is not None and ours is not None and loaded.shape != ours.shape:
                size, kind = len(loaded) if loaded.dim() else 1, type(self).__name__
                grow = f", then give it the new size: .resize({len(ours)})" if hasattr(self, "resize") else ""
                raise ValueError(
                    f"expected the memory of {len(ours) if ours.dim() else 1} samples at {prefix}{name}, received one "
                    f"of {size}. Build {kind}({size}, ...) for the data set that it was saved with and load{grow}; or "
                    "delete the key and load with strict=False to start afresh."
                )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.discard()
        self._back_to_host()

    def __getstate__(self) -> dict[str, Any]:
        # Without proposals, which belong to the forward that made them.
        return {**self.__dict__, "staged": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._back_to_host()  # copies of pinned memory are not pinned


def grown(table: Tensor, num_samples: int, start: float) -> Tensor:
    """A table of another size: its entries, then `start`."""
    new = table.new_full((num_samples,), start)
    common = min(num_samples, len(table))
    new[:common] = table[:common]
    return new


def _pinned(x: Tensor) -> Tensor:
    return x.pin_memory() if torch.cuda.is_available() else x


def staged_modules(modules: Iterable[nn.Module]) -> list[Staged]:
    """The modules with staged memory.

    Example:
        >>> import dro_temp as dt
        >>> loss = dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(100))
        >>> staged_modules(loss.modules())
        [LogMovingAverage(100)]
    """
    return [module for module in modules if isinstance(module, Staged)]
