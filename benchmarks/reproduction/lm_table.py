"""What temperatures per token are worth to a language model: frozen, and trained together; five seeds.

A two-layer GPT-2 on Python's source (vocabulary 1,024). Every method gets three trials at a seed of their own, chosen
by what it is trained for, on validation text; the chosen trial is trained with every seed and tested. Finished
runs are kept, so that the command can be stopped and typed again.

  python benchmarks/lm_methods.py                      both studies: about an hour on one core
  python benchmarks/lm_methods.py --studies frozen --seeds 0 1 --workers 2
"""

import argparse
import json
import multiprocessing
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from harness.study import kept, name_of
from language.methods import METHODS, Method
from language.tables import table

TUNING_SEED = 100


@dataclass(frozen=True)
class Job:
    """One run: a method, a seed, and the options of a trial."""

    method: str
    seed: int
    options: dict[str, float]
    out: Path


def run(job: Job) -> dict[str, Any]:
    """Train and evaluate, or read what was stored."""
    from language.runs import trained

    torch.set_num_threads(1)
    method, tuning = METHODS[job.method], job.seed == TUNING_SEED
    file = job.out / "runs" / f"{name_of(job.method, str(job.seed), **job.options)}.json"
    result = kept(file, lambda: trained(method, job.seed, job.options, job.out, tuning=tuning))
    print(f"{file.stem}: {result['chosen_by']:.4f} on validation, {result['seconds']:.0f} s", flush=True)
    return {"method": job.method, "seed": job.seed, "options": job.options, **result}


def study(methods: list[Method], options: argparse.Namespace, pool: Any) -> dict[str, Any]:
    """Tune, then train with every seed."""
    jobs = [Job(m.name, TUNING_SEED, trial, options.out) for m in methods for trial in m.trials()]
    tuned = pool.map(run, jobs, chunksize=1)
    best = {
        m.name: min((r for r in tuned if r["method"] == m.name), key=lambda r: r["chosen_by"])["options"]
        for m in methods
    }
    # Seed by seed, so that an early stop leaves whole comparisons.
    jobs = [Job(m.name, seed, best[m.name], options.out) for seed in options.seeds for m in methods]
    return {"chosen": best, "tests": pool.map(run, jobs, chunksize=1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    studies = sorted({m.study for m in METHODS.values()})
    parser.add_argument("--studies", nargs="+", choices=studies, default=studies, help="which (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of the test runs")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/lm_methods"))
    options = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for which in options.studies:
            found = study([m for m in METHODS.values() if m.study == which], options, pool)
            (options.out / f"{which}.json").write_text(json.dumps(found, indent=1))
            text = table(which, found)
            (options.out / f"{which}.md").write_text(text + "\n")
            print(text)


if __name__ == "__main__":
    main()
