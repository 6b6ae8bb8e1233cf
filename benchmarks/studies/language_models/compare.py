"""The paper's language-model table at a small scale: temperatures for each token, frozen, from scratch, fine-tuned.

A two-layer GPT-2 on the standard library's source (vocabulary 1,024). Every method gets three trials at a seed of their
own and is selected on validation text by its own objective; the selected trial is trained with every seed and tested.
Beside each TempNet that trains with its model stand two controls without a network: the mean of its temperatures as a
constant, and their path as a schedule. A run takes about a minute on one thread. Interrupt it with Ctrl-C; the same
command resumes it.

  python -m benchmarks.studies.language_models.compare                        # all three settings
  python -m benchmarks.studies.language_models.compare --settings frozen --seeds 0 1 --workers 2
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import Job, Options, all_done, tuned_and_tested
from benchmarks.studies.common.summary import publish, summarise
from benchmarks.studies.language_models.methods import METHODS
from benchmarks.studies.language_models.tables import TITLE, metrics, table, with_model_schemes


def run(method: str, seed: int, options: Options, **rest: Any) -> dict[str, Any]:
    """One run, in any process."""
    from benchmarks.studies.language_models.training import trained

    return trained(METHODS[method], seed, options, **rest)


def study(methods: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tune, train with every seed, and add the controls; results of the test runs."""

    def job_of(method: str, seed: int, chosen: Options) -> Job:
        return Job(method, seed, chosen, options.out / "runs", run, extra={"out": options.out})

    trials = {method: METHODS[method].trials() for method in methods}
    tests = tuned_and_tested(job_of, trials, options.seeds, options.workers)
    controlled = [test for test in tests if test["method"] in options.controls]
    return tests + all_done(_controls(controlled, options.out), options.workers, "controls")


def _controls(tests: list[dict[str, Any]], out: Path) -> list[Job]:
    """The same loss and learning rate at a network's last mean temperature, and along the path of its mean."""
    jobs = []
    for test in tests:
        method = METHODS[test["method"]]
        if method.inputs and method.setting != "frozen":
            loss = "constant" if method.robust else "likelihood-constant"
            constant = loss if method.setting == "joint" else f"{method.setting}-{loss}"
            options = test["options"] | {"tau": round(statistics.mean(test["taus"][-50:]), 4)}
            for kind, more in (("same-mean", {}), ("same-path", {"path": test["taus"]})):
                label, extra = f"{kind}-{method.name}", {"out": out, **more}
                jobs.append(Job(constant, test["seed"], options, out / "runs", run, label, extra))
    return jobs


def main() -> None:
    """Run the study."""
    arguments = parser(__doc__, "runs/language_models", methods=METHODS)
    settings = sorted({method.setting for method in METHODS.values()})
    arguments.add_argument(
        "--settings",
        nargs="+",
        choices=settings,
        default=settings,
        help="how the model trains (default: all)",
    )
    arguments.add_argument(
        "--controls",
        nargs="*",
        choices=list(METHODS),
        default=list(METHODS),
        metavar="METHOD",
        help="methods that get controls (default: all)",
    )
    options = arguments.parse_args()
    for setting in options.settings:
        tests = study([name for name in options.methods if METHODS[name].setting == setting], options)
        if setting == "frozen":
            tests = with_model_schemes(tests)
        summary = summarise(tests, metrics, compared=("perplexity",))
        publish("language_models", TITLE, setting, summary, table(setting, summary), options)


if __name__ == "__main__":
    main()
