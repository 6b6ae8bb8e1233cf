"""Memory that outlives a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from dro_temp._checks import check_count, check_flag, check_index, check_kind
from dro_temp._loading import ShapeChecked

_ROUNDED = (torch.float16, torch.bfloat16)


class Staged(ShapeChecked, ABC):
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
        #: What was proposed since the last commit, oldest first; never part of the saved state.
        self.staged: list[tuple[Tensor, ...]] = []
        self._starts: dict[str, float] = {}
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
        self._starts[name] = start

    def resize_tables(self, num_samples: int) -> None:
        """Give the tables of `remember` another size: entries stay, new ones start as all did.

        Args:
            num_samples: the new size; what `check_resize` returned.
        """
        for name, start in self._starts.items():
            table = grown(getattr(self, name), num_samples, start)
            self._buffers[name] = _pinned(table) if self.on_host else table

    def check_resize(
        self, num_samples: int, *, shrink: bool, optimizer: torch.optim.Optimizer | None = None
    ) -> int:
        """Return the new size as an int, or raise where the tables may not be given it; nothing is changed.

        Args:
            num_samples: the new size.
            shrink: True to let it be smaller, which forgets the last samples.
            optimizer: the one that trains tables which are parameters.

        Raises:
            TypeError: a size that is no int, or no optimizer.
            RuntimeError: proposals are pending.
            ValueError: a smaller size without `shrink`, or one below 1; an optimizer that does not train the table.
        """
        num_samples = check_count("num_samples", num_samples)
        check_flag("shrink", shrink)
        size = self._size()
        self._refuse_other_optimizer(optimizer)
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

    def _refuse_other_optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        if optimizer is None:
            return
        instead = "Pass the one that trains the table, or leave it out."
        check_kind("optimizer", optimizer, torch.optim.Optimizer, instead)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(p.requires_grad and id(p) not in trained for p in self.memory_parameters()):
            raise ValueError(
                f"expected the optimizer that trains this table, received one without the parameter of this "
                f"{type(self).__name__}. Build it from objective.param_groups(lr=..., tau_lr=...), or leave it out if "
                "there is none yet."
            )

    def memory_parameters(self) -> list[nn.Parameter]:
        """Those of the tables that a base optimizer trains."""
        tables = (self._parameters.get(name) for name in self.memory)
        return [table for table in tables if table is not None]

    def _size(self) -> int:
        """Number of samples that the tables have; a leaf may hold fewer tables than `memory` names."""
        return min(len(getattr(self, name)) for name in self.memory if hasattr(self, name))

    def check(self, index: Tensor) -> None:
        """Raise where a sample number is outside the tables."""
        if self.memory:
            check_index(index, self._size())

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

    def check_memory(self, state: Mapping[str, Any], prefix: str) -> None:
        """Raise where a state has memory of another size.

        Args:
            state: what is to be loaded.
            prefix: of this module's names in it.

        Raises:
            ValueError: it has.
        """
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
        """Copies and pickles start without proposals: those belong to the forward that made them."""
        return {**self.__dict__, "staged": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies of pinned memory are not pinned."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._back_to_host()


def grown(table: Tensor, num_samples: int, start: float) -> Tensor:
    """A table of another size: its entries, and new ones that start alike."""
    new = table.new_full((num_samples,), start)
    common = min(num_samples, len(table))
    new[:common] = table[:common]
    return new


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
