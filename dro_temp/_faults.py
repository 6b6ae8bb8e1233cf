"""Checks of values on a device that do not wait for it: a fault is noticed late, but surely.

Reading a number waits until all work that was launched before has run, and the work launched after it is no longer
hidden. So a check on a device computes a flag there, starts to copy it to the host, and goes on; the flags of earlier
checks are looked at when the next forward starts, when a step commits, and when a state is saved. By then they have
arrived. What a wrong value could do in the meantime is limited where it is used: a sample number outside a table reads
some entry and writes nothing, and a wrong group number joins group 0.

`checks_now()` waits at each check instead, so that the error is raised where the fault is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# Flags that may be under way; beyond that the oldest is waited for, so that no fault goes unnoticed for long.
_MOST_PENDING = 64

_NOW: ContextVar[bool] = ContextVar("checks_now", default=False)

#: For tests without a device: True to treat tensors of the CPU as if reading them waited.
everywhere = False


@dataclass
class _Fault:
    """A flag on its way to the host."""

    flag: Tensor
    arrived: torch.cuda.Event | None
    error: Callable[[], Exception]

    def is_known(self) -> bool:
        return self.arrived is None or bool(self.arrived.query())  # type: ignore[no-untyped-call]


pending: list[_Fault] = []


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


def report(bad: Tensor, error: Callable[[], Exception]) -> None:
    """Raise an error if a flag on a device is true: later, or now inside `checks_now`.

    Args:
        bad: one boolean, or several.
        error: makes the error; it may read the device, which has run by then.
    """
    if bad.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # replays of a graph are not checked
    flag = bad.any()
    if _NOW.get() or (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        if bool(flag):
            raise error()
        return
    if flag.is_cuda:
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        pending.append(_Fault(host, arrived, error))
    else:
        pending.append(_Fault(flag, None, error))
    if len(pending) > _MOST_PENDING:
        raise_faults(at_least=1)


def raise_faults(*, at_least: int = 0, wait: bool = False) -> None:
    """Raise the oldest fault that is known by now.

    Args:
        at_least: flags to wait for.
        wait: whether to wait for all of them.
    """
    if any(fault.arrived is not None for fault in pending) and torch.cuda.is_current_stream_capturing():
        return  # a graph is being captured: nothing may be asked of other streams
    waited_for = len(pending) if wait else at_least
    while pending and (waited_for > 0 or pending[0].is_known()):
        waited_for -= 1
        fault = pending[0]
        if fault.arrived is not None:
            fault.arrived.synchronize()
        if fault.flag.tolist():  # of the host, so that nothing waits
            pending.clear()  # later ones follow from it
            raise fault.error()
        del pending[0]
