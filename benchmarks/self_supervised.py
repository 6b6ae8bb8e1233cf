"""Four unimodal contrastive schemes against each other, and against floors: does a frozen backbone know characters?

A timm backbone is trained on two distorted views of each of 1,800 glyphs (200 characters in nine fonts) without their
names; then its frozen features say the name, in fonts that training never saw. Each scheme gets two trials (the
temperature or the radius) at one learning rate, on a division of the glyphs of their own; the one of the best
validation kNN is trained on five others, each with a seed of its own, and tested. Floors: the untrained backbone, and
bare pixels. Controls: the two schemes of a constant temperature at the one that they did not choose, so that loss and
temperature can be told apart.

  python benchmarks/self_supervised.py                             # 50 runs, the longest half a minute on one thread
  python benchmarks/self_supervised.py --schemes simclr tempnet --seeds 0 1    # a part of it

Stopped with Ctrl-C, it goes on where it was.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from harness.study import cell
from reproduction.paired import against
from reproduction.study import TUNING_SEED, Job, all_done, job, tuned_and_tested
from two_views.config import SCHEMES, Options
from two_views.data import load
from two_views.evaluation import evaluate, pixels
from two_views.model import Encoder
from two_views.training import Run

SETTING: dict[str, Any] = {"names": 200, "epochs": 6, "batch_size": 64, "lr": 2e-3}
CONSTANT, FLOORS, BASELINE = ("simclr", "sogclr"), ("untrained", "pixels"), "simclr"
TRIALS: dict[str, list[dict[str, float]]] = {
    "simclr": [{"tau": 0.1}, {"tau": 0.2}],
    "sogclr": [{"tau": 0.1}, {"tau": 0.2}],
    "isogclr": [{"rho": 0.5}, {"rho": 1.5}],
    "tempnet": [{"rho": 0.5}, {"rho": 1.5}],
    "untrained": [{}],
    "pixels": [{}],
}


def run(
    arm: str, seed: int, options: dict[str, float], *, tuning: bool, setting: dict[str, Any]
) -> dict[str, Any]:
    """One run, in whatever process; test images are read only where it is no trial."""
    start, data = time.process_time(), load(setting["names"], seed)
    if arm in FLOORS:
        torch.manual_seed(seed)
        found = evaluate(
            pixels if arm == "pixels" else Encoder(Options().backbone).backbone, data, test=not tuning
        )
        return {"chosen_by": -found["val_knn"], "metrics": found}
    training = Run(Options(scheme=arm, **setting, **options), seed, data.train.images)  # type: ignore[arg-type]
    training.fit()
    found = evaluate(training.encoder.backbone, data, test=not tuning)
    for view, tau in training.temperatures().items():
        found |= {f"{view}_tau_mean": float(tau.mean()), f"{view}_tau_std": float(tau.std())}
    return {"chosen_by": -found["val_knn"], "metrics": found, "seconds": time.process_time() - start}


def table(tests: list[dict[str, Any]]) -> str:
    """One row for each arm; differences to SimCLR are paired by seed."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for test in sorted(tests, key=lambda t: t["seed"]):
        by_arm.setdefault(test["arm"], []).append(test)
    columns = {
        arm: {key: [r["metrics"][key] for r in runs] for key in ("knn", "probe")}
        for arm, runs in by_arm.items()
    }
    lines = [
        "| features | chosen | kNN (%) | minus SimCLR | linear probe (%) | minus SimCLR | τ: mean (std) |",
        "|---|---|---:|---|---:|---|---|",
    ]
    for arm, runs in by_arm.items():
        options = ", ".join(f"{k} {v:g}" for k, v in runs[0]["options"].items())
        cells = [
            f"{cell(columns[arm][key])} | {_minus_baseline(columns, arm, key)}" for key in ("knn", "probe")
        ]
        lines.append(f"| {arm} | {options} | {' | '.join(cells)} | {_temperatures(runs)} |")
    return "\n".join(lines)


def _minus_baseline(columns: dict[str, dict[str, list[float]]], arm: str, key: str) -> str:
    """The three other schemes are one family of tests; a floor needs none, and controls stand below."""
    if arm not in SCHEMES or arm == BASELINE or BASELINE not in columns or len(columns[arm][key]) < 2:
        return ""
    others = {other: columns[other][key] for other in SCHEMES if other in columns and other != BASELINE}
    corrected = against(columns[BASELINE][key], others)[arm].p
    return _difference(columns[arm][key], columns[BASELINE][key], corrected)


def at_the_same_temperature(tests: list[dict[str, Any]]) -> list[str]:
    """SogCLR minus SimCLR at each temperature, whichever they chose: what the loss does by itself."""
    found: dict[tuple[str, float], list[float]] = {}
    for test in sorted(tests, key=lambda t: t["seed"]):
        if test["arm"].partition(",")[0] in CONSTANT:
            at = test["arm"].partition(",")[0], test["options"]["tau"]
            found.setdefault(at, []).append(test["metrics"]["knn"])
    lines = []
    for tau in sorted({tau for _, tau in found}):
        simclr, sogclr = (found.get((arm, tau), []) for arm in CONSTANT)
        if len(simclr) == len(sogclr) > 1:
            lines.append(f"kNN at tau {tau:g}, SogCLR minus SimCLR: {_difference(sogclr, simclr)}")
    return lines


def _difference(ours: list[float], theirs: list[float], p: float | None = None) -> str:
    """Mean, its 95 % interval, the p-value and in how many seeds ours is better."""
    found = against(ours, {"theirs": theirs})["theirs"]
    (low, high), wins = found.interval, sum(a > b for a, b in zip(ours, theirs, strict=True))
    p = found.p if p is None else p
    return f"{found.mean:+.1f} [{low:+.1f}, {high:+.1f}], p {p:.2g}, {wins} of {len(ours)}"


def _temperatures(runs: list[dict[str, Any]]) -> str:
    if "first_tau_mean" not in runs[0]["metrics"]:
        return ""
    mean, std = (
        statistics.mean(r["metrics"][f"{view}_tau_{what}"] for r in runs for view in ("first", "second"))
        for what in ("mean", "std")
    )
    return f"{mean:.3f} ({std:.3f})"


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arms = [*SCHEMES, *FLOORS]
    parser.add_argument("--schemes", nargs="+", choices=arms, default=arms, help="which to compare")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of the test runs")
    parser.add_argument("--names", type=int, default=SETTING["names"], help="characters")
    parser.add_argument("--epochs", type=int, default=SETTING["epochs"], help="passes over the glyphs")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/self_supervised_study"), help="folder of the runs"
    )
    options = parser.parse_args()
    if TUNING_SEED in options.seeds:
        parser.error(f"--seeds: {TUNING_SEED} is the seed of the trials; test with others")
    setting = SETTING | {"names": options.names, "epochs": options.epochs}
    folder = options.out / f"{options.names}x{options.epochs}"

    def job_of(arm: str, seed: int, chosen: dict[str, float]) -> Job:
        return job(run, folder, arm, seed, chosen, setting=setting)

    trials = {arm: TRIALS[arm] for arm in options.schemes}
    best, tests = tuned_and_tested(job_of, trials, options.seeds, options.workers)
    controls = [
        job(run, folder, arm, seed, other, label=f"{arm}, not chosen", setting=setting)
        for seed in options.seeds
        for arm in options.schemes
        if arm in CONSTANT
        for other in TRIALS[arm]
        if other != best[arm]
    ]
    tests += all_done(controls, options.workers, "controls")
    found = {"setting": setting, "trials": trials, "chosen": best, "tests": tests}
    (options.out / "self_supervised.json").write_text(json.dumps(found, indent=1))
    text = "\n\n".join([table(tests), *at_the_same_temperature(tests)])
    (options.out / "self_supervised.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
