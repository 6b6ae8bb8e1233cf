"""Peak memory of one step, each in its own process.

Resident memory, not the allocator's count, so that it includes the packing buffers of matrix products and what the C
library retains. The measured step is the first of its size: pages that an earlier step returned to the allocator but
not to the system would be part of the resident size that is subtracted.
"""

import gc
import importlib
import multiprocessing
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.contender import Contender, Problem

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """Bytes that a step adds.

    Args:
        peak: at its highest, including the gradients that the step leaves.
        gradients: size of these gradients.
    """

    peak: int
    gradients: int

    @property
    def scratch(self) -> int:
        """The peak without the gradients."""
        return self.peak - self.gradients


def of_step(contender: Contender, make: Callable[[Any], Problem], small: Any, full: Any, device: str) -> Peak:
    """Peak of the contender's first full step. Call it in a fresh process (`in_fresh_process`).

    Args:
        contender: whose step.
        make: makes a problem.
        small: shape of a problem that only loads kernels and starts threads.
        full: shape of the measured problem.
        device: "cpu" or "cuda".
    """
    torch.set_num_threads(1)
    limit_to_available_memory(device)
    importlib.import_module("torch._dynamo")  # 150 MB that optimizers and checkpointing import at some point
    contender.make(make(small))()
    problem = make(full)
    step = contender.make(problem)
    if contender.compiled:  # its first step compiles
        step()
        problem.clear()
    gc.collect()
    before = _start_peak(device)
    step()
    return Peak(_peak(device) - before, problem.gradient_bytes())


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Return the function's result; RuntimeError if it raised, with its message, or if the process died."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        succeeded, answer = receiver.recv()
    except EOFError:
        succeeded, answer = False, "the process was killed"
    process.join()
    if not succeeded:
        raise RuntimeError(answer)
    return answer


def limit_to_available_memory(device: str) -> None:
    """Make an allocation that does not fit raise an error before the system starts to kill processes."""
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
    """Reset the peak; returns the current memory."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        CLEAR.write_text("5")
    except OSError:
        return _peak(device)  # a step below an earlier peak is then underestimated
    return _kilobytes(STATUS, "VmRSS")


def _peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        # Not ru_maxrss, which a child inherits from its parent.
        return _kilobytes(STATUS, "VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _kilobytes(file: Path, name: str) -> int:
    """The line `Name: 123 kB` of such a file, in bytes."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
