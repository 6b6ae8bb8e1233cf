"""Peak memory of one step, each in a process of its own.

Resident memory, not the allocator's count: what products pack for themselves and what the C library keeps are
paid for as well. The step that is measured is the first of its size, since pages that an earlier one gave back
to the allocator, but not to the system, would hide in the resident size that is subtracted.
"""

import gc
import importlib
import multiprocessing
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from harness.contender import Contender, Problem

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Bytes above what was there before the step.

    Args:
        peak: with the gradients that the step leaves.
        gradients: those.
    """

    peak: int
    gradients: int

    @property
    def scratch(self) -> int:
        """What is gone after the step."""
        return self.peak - self.gradients

    def asdict(self) -> dict[str, int]:
        """For JSON."""
        return {**asdict(self), "scratch": self.scratch}


def of_step(contender: Contender, make: Callable[[Any], Problem], small: Any, full: Any, device: str) -> Peak:
    """Peak of the contender's first full step. Call it in a fresh process (`in_fresh_process`).

    Args:
        contender: whose step.
        make: makes a problem.
        small: what a problem is made of that only loads kernels and starts threads.
        full: what the problem is made of.
        device: "cpu" or "cuda".
    """
    torch.set_num_threads(1)
    refuse_more_than_there_is(device)
    importlib.import_module(
        "torch._dynamo"
    )  # every optimizer and checkpoint loads it, 150 MB, sooner or later
    contender.make(make(small))()
    problem = make(full)
    step = contender.make(problem)
    if contender.compiled:  # its first step is the compiler's
        step()
        problem.clear()
    gc.collect()
    before = _start_peak(device)
    step()
    return Peak(_peak(device) - before, problem.gradient_bytes())


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns; raises RuntimeError with what it raised, or if the process died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        fine, answer = receiver.recv()
    except EOFError:
        fine, answer = False, "the process was killed"
    process.join()
    if not fine:
        raise RuntimeError(answer)
    return answer


def refuse_more_than_there_is(device: str) -> None:
    """Let an allocation that does not fit raise, in place of a system that looks for something to kill."""
    info = Path("/proc/meminfo")
    if device != "cpu" or not info.exists():  # drivers reserve addresses by the terabyte
        return
    limit = _kilobytes(STATUS, "VmData") + _kilobytes(info, "MemAvailable") * 9 // 10
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _send(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        sender.send((True, function(*args)))
    except Exception as error:
        sender.send((False, f"{type(error).__name__}: {error}"))


def _start_peak(device: str) -> int:
    """Begin anew to watch the peak; returns where it stands."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        CLEAR.write_text("5")
    except OSError:
        return _peak(device)  # too little is then said of a step that stays below an earlier peak
    return _kilobytes(STATUS, "VmRSS")


def _peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        # Not ru_maxrss, in which a child starts from its parent's size.
        return _kilobytes(STATUS, "VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _kilobytes(file: Path, name: str) -> int:
    """A line `Name: 123 kB` of such a file, in bytes."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
