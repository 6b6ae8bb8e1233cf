"""Ratios of process times from one interleaved run, in which every contender takes its turn in every round."""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.results import save


def interleaved(
    contenders: dict[str, Callable[[], Any]],
    rounds: int,
    repeats: int,
    *,
    before: Callable[[], Any] | None = None,
    warm_up: bool = True,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one number per round: A B C A B C ...

    Args:
        contenders: functions to time.
        rounds: number of timed rounds.
        repeats: calls of each contender in each round.
        before: called before each call, untimed, to leave the caches in the state of real use.
        warm_up: True for one more, untimed round at the start.
        clock: returns seconds; process time excludes what other processes take of the core.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + warm_up):
        for name, call in contenders.items():
            total = 0.0
            for _ in range(repeats):
                if before is not None:
                    before()
                start = clock()
                call()
                total += clock() - start
            if number >= warm_up:
                seconds[name].append(total / repeats)
    return seconds


def clock_of(device: str) -> Callable[[], float]:
    """Process time on the CPU; on a GPU, whose work process time excludes, wall time after synchronising."""
    if device == "cpu":
        return time.process_time

    def idle() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return idle


def ratios(seconds: dict[str, list[float]], to: str) -> dict[str, dict[str, float]]:
    """Median and quartiles of the ratios to one contender; taken round by round, so that drifts cancel."""
    table = {}
    for name, own in seconds.items():
        paired = [a / b for a, b in zip(own, seconds[to], strict=True)]
        # A single round has no spread.
        low, median, high = statistics.quantiles(paired, n=4) if len(paired) > 1 else paired * 3
        table[name] = {"median": median, "q1": low, "q3": high, "ms": 1e3 * statistics.median(own)}
    return table


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, versions, threads, date."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _processor() -> str:
    """The model's name where the system provides it; Python itself often knows only the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def report(title: str, table: dict[str, dict[str, float]], to: str, out: Path, **more: Any) -> None:
    """Print the table and save it with the machine, as the section "cpu" of the results file."""
    print(f"{title}\n{machine()}")
    width = max(map(len, table))
    print(f"{'':{width}}  ratio to {to!r}: median [quartiles]   time (ms)")
    for name, row in table.items():
        print(f"{name:{width}}  {row['median']:.3f} [{row['q1']:.3f}, {row['q3']:.3f}]   {row['ms']:.2f}")
    rows = [{"contender": name, **row} for name, row in table.items()]
    save(out, title, "cpu", {"machine": machine(), "ratio_to": to, "contenders": rows, **more})
    print(f"saved {out}", file=sys.stderr)
