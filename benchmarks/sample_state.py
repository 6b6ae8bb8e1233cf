"""Cost of state for every sample: bytes per sample and side, and the time of a step as the data set grows.

Two sides (image, text) of `LogMovingAverage(..., on_host=True)`. Resident memory is Linux's figure for this process. A
step is one side's propose and commit of a batch of random samples, new ones at every step.

Run: python -m benchmarks.sample_state [--samples 100000000] [--rounds 30] [--out FILE]
"""

import argparse
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

import dro_temp as dt
from benchmarks.harness.timing import interleaved, ratios, report

SIDES = ("image", "text")
SMALLEST, MIDDLE = 10_000, 1_000_000
MILLIONS = 400  # pairs in LAION-400M
REPEATS = 10


def resident(field: str = "VmRSS") -> int:
    """Resident bytes of this process now (VmRSS), or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measured(samples: int) -> tuple[torch.nn.ModuleDict, dict[str, Any]]:
    """State of both sides, and the memory that building, saving and moving it add to this process."""
    torch.zeros(1).add_(1)  # exclude what torch allocates at its first use
    before = resident()
    sides = torch.nn.ModuleDict({side: dt.LogMovingAverage(samples, on_host=True) for side in SIDES})
    built = resident() - before
    state = sides.state_dict()
    sides.half()
    sides.to("meta")  # stands for any device: tables do not move
    sides.load_state_dict(state, assign=True)
    peak = resident("VmHWM") - before
    tables = [state[f"{side}.log_u"] for side in SIDES]
    return sides, {
        "samples": samples,
        "sides": len(SIDES),
        "pinned": tables[0].is_pinned(),
        "bytes_per_sample_and_side": sum(table.nbytes for table in tables) / samples / len(SIDES),
        "table_bytes": sum(table.nbytes for table in tables),
        "resident_bytes_added": built,
        "resident_bytes_per_sample_and_side": built / samples / len(SIDES),
        "peak_bytes_added_by_building_saving_moving_loading": peak,
    }


def step(estimator: dt.LogMovingAverage, batch_size: int, steps: int) -> Callable[[], None]:
    """One side's propose and commit."""
    g = torch.Generator().manual_seed(0)
    index = torch.randint(estimator.num_samples, (steps, batch_size), generator=g)
    batches = cycle(zip(index, torch.randn(steps, batch_size, generator=g), strict=True))
    valid = torch.ones(batch_size, dtype=torch.bool)

    def call() -> None:
        rows, log_g = next(batches)
        estimator.propose(rows, log_g, valid)
        estimator.commit()

    return call


def show(memory: dict[str, Any]) -> None:
    gigabytes = {name: value / 1e9 for name, value in memory.items() if "bytes" in name}
    print(
        f"{memory['samples']:,} samples x {memory['sides']} sides: "
        f"{memory['bytes_per_sample_and_side']:g} bytes per sample and side"
        f" ({'pinned' if memory['pinned'] else 'not pinned: no CUDA here'})\n"
        f"resident memory added: {gigabytes['resident_bytes_added']:.3f} GB "
        f"({memory['resident_bytes_per_sample_and_side']:.3f} bytes per sample and side), at its peak "
        f"{gigabytes['peak_bytes_added_by_building_saving_moving_loading']:.3f} GB\n"
        f"by arithmetic, not measured: {MILLIONS} M x {memory['sides']} x "
        f"{memory['bytes_per_sample_and_side']:g} bytes = {memory['arithmetic_bytes_at_400_M'] / 1e9:.1f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100_000_000, help="size of the largest data set")
    parser.add_argument("--batch-size", type=int, default=4096, help="rows per step")
    parser.add_argument("--rounds", type=int, default=30, help=f"rounds of {REPEATS} steps of each size")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/sample_state.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    sides, memory = measured(options.samples)
    per_entry = memory["bytes_per_sample_and_side"]
    memory["arithmetic_bytes_at_400_M"] = MILLIONS * 1e6 * len(SIDES) * per_entry
    show(memory)

    estimators = {f"{n:,} samples": dt.LogMovingAverage(n, on_host=True) for n in (SMALLEST, MIDDLE)}
    estimators[f"{options.samples:,} samples"] = sides[SIDES[0]]
    steps = (options.rounds + 1) * REPEATS
    contenders = {name: step(e, options.batch_size, steps) for name, e in estimators.items()}
    to = f"{SMALLEST:,} samples"
    table = ratios(interleaved(contenders, options.rounds, REPEATS), to)
    title = f"propose + commit of one side, batch {options.batch_size}, fp32 CPU"
    report(title, table, to, options.out, memory=memory)


if __name__ == "__main__":
    main()
