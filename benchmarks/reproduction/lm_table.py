"""The paper's language-model table, small: what temperatures per token are worth, frozen, from scratch, fine-tuned.

A two-layer GPT-2 on the standard library's source (vocabulary 1,024). Every method gets three trials at a seed of its
own, chosen by what it is trained for, on validation text; the chosen trial is trained with every seed and tested.
Beside each TempNet that trains with its host stand two controls without a network: the mean of its temperatures as a
constant, and their path as a schedule. A run takes about a minute on one thread; finished ones are kept, so that the
command can be stopped and typed again.

  python benchmarks/reproduction/lm_table.py                          # all three studies
  python benchmarks/reproduction/lm_table.py --studies frozen --seeds 0 1 --workers 2
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from language.methods import METHODS
from language.tables import table

from reproduction.study import Job, all_done, job, tuned_and_tested


def run(arm: str, seed: int, options: dict[str, float], **rest: Any) -> dict[str, Any]:
    """One run, in whatever process."""
    from language.runs import trained

    return trained(METHODS[arm], seed, options, **rest)


def study(methods: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Tune, then train with every seed."""

    def job_of(arm: str, seed: int, chosen: dict[str, float]) -> Job:
        return job(run, options.out / "runs", arm, seed, chosen, out=options.out)

    trials = {m: METHODS[m].trials() for m in methods}
    best, tests = tuned_and_tested(job_of, trials, options.seeds, options.workers)
    controlled = [test for test in tests if test["arm"] in options.controls]
    controls = all_done(_controls(controlled, options.out), options.workers, "controls")
    return {"chosen": best | {test["arm"]: test["options"] for test in controls}, "tests": tests + controls}


def _controls(tests: list[dict[str, Any]], out: Path) -> list[Job]:
    """The same loss and learning rate without a network: at its last mean temperature, and along the path of it."""
    jobs = []
    for test in tests:
        method = METHODS[test["arm"]]
        if method.inputs and method.study != "frozen":
            loss = "constant" if method.robust else "likelihood-constant"
            constant = loss if method.study == "joint" else f"{method.study}-{loss}"
            options = test["options"] | {"tau": round(statistics.mean(test["taus"][-50:]), 4)}
            for kind, more in (("same-mean", {}), ("same-path", {"path": test["taus"]})):
                label = f"{kind}-{method.name}"
                jobs.append(
                    job(run, out / "runs", constant, test["seed"], options, label=label, out=out, **more)
                )
    return jobs


def main() -> None:
    """Run the studies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    studies = sorted({m.study for m in METHODS.values()})
    parser.add_argument("--studies", nargs="+", choices=studies, default=studies, help="which (default: all)")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="which of them"
    )
    parser.add_argument(
        "--controls", nargs="*", choices=list(METHODS), default=list(METHODS), help="those of which networks"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of the test runs")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduction/lm"), help="folder of runs and tables"
    )
    options = parser.parse_args()
    for which in options.studies:
        found = study([m for m in options.methods if METHODS[m].study == which], options)
        (options.out / f"{which}.json").write_text(json.dumps(found, indent=1))
        text = table(which, found)
        (options.out / f"{which}.md").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
