"""Every way to choose a temperature on the demo's task: the same tuning budget, selection on validation, five seeds.

Each method gets eight trials (four learning rates x two values of what matters most to it) at a seed of their own;
the trial with the best validation R@1 is trained with every seed and tested. Finished runs are kept, so that the
command can be stopped and typed again.

Run: python benchmarks/glyph_methods.py [--workers 2] [--seeds 0 1 2 3 4]     (about 20 minutes on two cores)
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from harness.study import cell, kept, name_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)
SECOND: dict[str, tuple[str, tuple[float, float]]] = {
    "infonce": ("tau_init", (0.05, 0.1)),
    "infonce-constant": ("tau_init", (0.05, 0.1)),
    "constant": ("tau_init", (0.05, 0.1)),
    "learnable": ("rho", (1.5, 2.5)),
    "individual": ("rho", (1.5, 2.5)),
    "tempnet": ("rho", (1.5, 2.5)),
}
TUNING_SEED = 100
# Stated here, so that the demo's defaults may move without moving this comparison.
FIXED: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 128,
    "train_size": 8_000,
    "eval_size": 100_000,  # whole splits
    "tau_lr": 2e-3,
    "tau_init": 0.07,
    "tau_min": 0.01,
    "tau_max": 0.2,
    "rho": 2.0,
    "gamma": 0.8,
}
METRICS = ("test_seen/i2t_r1", "test_seen/t2i_r1", "test_unseen/i2t_r1", "test_unseen/t2i_r1", "mean_r1")


def run(job: tuple[str, int, dict[str, float], Path]) -> dict[str, Any]:
    """One training run, or its stored result."""
    method, seed, options, folder = job
    name = name_of(method, str(seed), **options)
    return kept(folder / "runs" / f"{name}.json", lambda: trained(method, seed, options, name))


def trained(method: str, seed: int, options: dict[str, float], name: str) -> dict[str, Any]:
    """One training run."""
    from glyphs.config import Config
    from glyphs.data import load
    from glyphs.training import Run

    torch.set_num_threads(1)
    config = Config(methods=(method,), **(FIXED | options))
    training = Run(method, seed, config, load(config))
    training.fit(save=lambda _: None)
    result = {
        "method": method,
        "seed": seed,
        "options": options,
        "validation": training.history["val_r1"][-1],
        "metrics": training.result["metrics"],
        "seconds": training.seconds,
    }
    print(f"{name}: validation {result['validation']:.2f}, {result['seconds']:.0f} s", flush=True)
    return result


def trials(method: str) -> list[dict[str, float]]:
    option, values = SECOND[method]
    return [{"lr": lr, option: value} for lr, value in itertools.product(LEARNING_RATES, values)]


def table(chosen: dict[str, dict[str, float]], tests: list[dict[str, Any]], baseline: str = "infonce") -> str:
    lines = [
        "| method | chosen on validation | seen i2t | seen t2i | unseen i2t | unseen t2i | mean R@1 "
        "| minus InfoNCE, paired | τ images: mean (std over inputs) |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    by_method = {m: {r["seed"]: r["metrics"] for r in tests if r["method"] == m} for m in chosen}
    for method, runs in by_method.items():
        cells = [cell([r[k] for r in runs.values()]) for k in METRICS]
        gain = [r["mean_r1"] - by_method[baseline][seed]["mean_r1"] for seed, r in runs.items()]
        tau = f"{statistics.mean(r['tau_image_mean'] for r in runs.values()):.3f}"
        spread = f"{statistics.mean(r['tau_image_std'] for r in runs.values()):.4f}"
        picked = ", ".join(f"{k} {v:g}" for k, v in chosen[method].items())
        difference = "" if method == baseline else cell(gain, sign="+")
        lines.append(f"| {method} | {picked} | {' | '.join(cells)} | {difference} | {tau} ({spread}) |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=SECOND, default=list(SECOND), help="which to compare")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds of the test runs"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/glyph_methods"))
    options = parser.parse_args()
    jobs = [(m, TUNING_SEED, t, options.out) for m in options.methods for t in trials(m)]
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        tuned = pool.map(run, jobs, chunksize=1)
        best = {
            m: max((r for r in tuned if r["method"] == m), key=lambda r: r["validation"])["options"]
            for m in options.methods
        }
        # Seed by seed, so that an early stop leaves whole comparisons.
        jobs = [(m, seed, best[m], options.out) for seed in options.seeds for m in options.methods]
        tests = pool.map(run, jobs, chunksize=1)
    text = table(best, tests)
    (options.out / "results.json").write_text(json.dumps({"chosen": best, "tests": tests}, indent=1))
    (options.out / "results.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
