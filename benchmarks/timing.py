"""Ratios from one interleaved run: every contender takes its turn in every round, in process time."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def interleaved(
    contenders: dict[str, Callable[[], Any]], rounds: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one number per round; A B C A B C ..., after one round not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, call in contenders.items():
            start = time.process_time()
            for _ in range(repeats):
                call()
            if number:
                seconds[name].append((time.process_time() - start) / repeats)
    return seconds


def ratios(seconds: dict[str, list[float]], to: str) -> dict[str, dict[str, float]]:
    """Ratio to one contender, round by round, so that a drift of the machine cancels: median and quartiles."""
    table = {}
    for name, mine in seconds.items():
        paired = sorted(a / b for a, b in zip(mine, seconds[to], strict=True))
        low, median, high = statistics.quantiles(paired, n=4)
        table[name] = {"median": median, "q1": low, "q3": high, "ms": 1e3 * statistics.median(mine)}
    return table


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def report(title: str, table: dict[str, dict[str, float]], to: str, out: Path) -> None:
    """Print the table and save it as JSON with the machine."""
    print(f"{title}\n{machine()}")
    width = max(map(len, table))
    print(f"{'':{width}}  ratio to {to!r}: median [quartiles]   time (ms)")
    for name, row in table.items():
        print(f"{name:{width}}  {row['median']:.3f} [{row['q1']:.3f}, {row['q3']:.3f}]   {row['ms']:.2f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"title": title, "machine": machine(), "to": to, "ratios": table}, indent=2))
    print(f"saved {out}", file=sys.stderr)
