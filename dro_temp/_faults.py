"""Checks of values on a device that do not wait for it: a fault is noticed late, but surely.

Reading a number waits until all work that was launched before has run, and the work launched after it is no longer
hidden. So a check on a device starts to copy a few numbers to the host, and goes on; those of earlier checks are looked
at when the next forward starts, when a step commits, and when a state is saved. By then they have arrived. The step
with the fault may have been taken: go on from a checkpoint. What a wrong value could do in the meantime is limited
where it is used: a sample number outside a table reads some entry and writes nothing, and a wrong group number joins
group 0.

A step captured in a CUDA graph keeps its numbers in the graph's memory; `ReplayChecks` copies them after a replay.

`checks_now()` waits at each check instead, so that the error is raised where the fault is.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Flags that may be under way; beyond that the oldest is waited for, so that no fault goes unnoticed for long.
_MOST_PENDING = 64

_NOW: ContextVar[bool] = ContextVar("checks_now", default=False)

#: For tests without a device: True to treat tensors of the CPU as if reading them waited.
everywhere = False


@dataclass
class _Check:
    """Numbers on their way to the host, and what they mean."""

    numbers: Tensor
    arrived: torch.cuda.Event | None
    error: Callable[[Any], Exception | None]

    def is_known(self) -> bool:
        return self.arrived is None or bool(self.arrived.query())  # type: ignore[no-untyped-call]

    def known_error(self) -> Exception | None:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.error(self.numbers.tolist())  # of the host, so that nothing waits


class _Pending(threading.local):
    """Checks of this thread that have not been looked at."""

    def __init__(self) -> None:
        self.checks: list[_Check] = []
        #: Keeps the checks of the step that is being captured.
        self.capture: ReplayChecks | None = None


pending = _Pending()


@contextmanager
def checks_now() -> Iterator[None]:
    """Inside, checks of values on a device wait for it, and raise where the fault is.

    Example:
        >>> from dro_temp.state import checks_now
        >>> with checks_now():
        ...     pass  # a step in here raises at its own fault, and is slower
    """
    token = _NOW.set(True)
    try:
        yield
    finally:
        _NOW.reset(token)


def is_capturing() -> bool:
    """Whether work is recorded into a CUDA graph instead of running: nothing may be read, or decided by values."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


class ReplayChecks:
    """The checks of a step that is captured in a CUDA graph: a context around the capture, asked after each replay.

    Sample numbers, labels, and what is not finite: a replay writes their numbers anew, and they are looked at as those
    of other steps are, late and without a wait. `objective.state_dict()` looks at all that are under way. Drop it with
    its graph, whose tensors it keeps.

    Example:
        >>> from dro_temp.state import ReplayChecks
        >>> checks = ReplayChecks()
        >>> with checks:
        ...     pass  # with torch.cuda.graph(graph): step()
        >>> checks.look()  # after graph.replay()
    """

    def __init__(self) -> None:
        self.checks: list[tuple[Tensor, Callable[[Any], Exception | None]]] = []

    def __enter__(self) -> "ReplayChecks":
        self._outer, pending.capture = pending.capture, self
        return self

    def __exit__(self, *error: object) -> None:
        pending.capture = self._outer

    def look(self) -> None:
        """Look at the last replay's numbers, once they have arrived, and at those of earlier replays.

        Raises:
            IndexError, ValueError, FloatingPointError: a fault of a replay or step of this thread.
        """
        for numbers, error in self.checks:
            check(numbers, error)
        raise_faults()


def check(numbers: Tensor, error: Callable[[Any], Exception | None]) -> None:
    """Raise if some numbers on a device are wrong: later, or now inside `checks_now` and with several processes.

    Args:
        numbers: a few, in one tensor. They are copied: the batch's own tensors may have changed by then.
        error: from the numbers, as a list or one number, to what is to be raised; None if nothing is wrong.
    """
    if is_capturing():
        # Copied: a replay may reuse what the graph computed them from. Kept, so that it does not reuse the copy.
        if pending.capture is not None:
            pending.capture.checks.append((numbers.clone(), error))
        return
    if _NOW.get() or (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        found = error(numbers.tolist())
        if found is not None:
            raise found
        return
    arrived = None
    if numbers.is_cuda:
        on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        numbers = on_host.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
    pending.checks.append(_Check(numbers, arrived, error))
    if len(pending.checks) > _MOST_PENDING:
        raise_faults(at_least=1)


def raise_faults(*, at_least: int = 0, wait: bool = False) -> None:
    """Raise the oldest fault of this thread that is known by now.

    Args:
        at_least: checks to wait for.
        wait: whether to wait for all of them.
    """
    checks = pending.checks
    if is_capturing():
        return  # a graph is being captured: nothing may be asked of other streams
    waited_for = len(checks) if wait else at_least
    while checks and (waited_for > 0 or checks[0].is_known()):
        waited_for -= 1
        error = checks.pop(0).known_error()
        if error is not None:
            checks.clear()  # later ones follow from it
            raise error
