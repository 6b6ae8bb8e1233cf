"""Memory that outlives a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn


class Staged(nn.Module, ABC):
    """Memory that forward reads and an optimizer step writes.

    A second forward, a step that a gradient scaler skipped, validation: none of them may change it. A leaf
    calls `stage` in forward or backward and fills in `write`.
    """

    #: Names of the buffers or parameters that remember; they are never rounded below float32.
    memory: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._staged: list[tuple[Tensor, ...]] = []

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
        # model.bfloat16() must not round the memory: near 100, bfloat16 numbers are 0.5 apart.
        before = {name: getattr(self, name) for name in self.memory if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in before.items():
            now = getattr(self, name)
            if now.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, exact.to(now.device))
        return self

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

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without proposals: those belong to the forward that made them."""
        return {**self.__dict__, "_staged": []}


def staged_modules(modules: Iterable[nn.Module]) -> list[Staged]:
    """Those of the modules that hold staged memory.

    Example:
        >>> import dro_temp as dt
        >>> loss = dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(100))
        >>> staged_modules(loss.modules())
        [LogMovingAverage(100)]
    """
    return [module for module in modules if isinstance(module, Staged)]
