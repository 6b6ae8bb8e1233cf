"""The paper's CLIP table at a small scale: which loss retrieves best, and do temperatures for each input help?

Glyph-caption pairs: 8,000, or all 31,000 of the training fonts, in batches of 128 or 256. Every method gets four trials
(two learning rates, two values of its most important option) on a data split of their own, at 8,000 pairs and the same
batch size. The trial with the best validation R@1 is trained and tested on five other splits, each with its own seed.
Beside each TempNet stand two controls: the mean of its temperatures as a constant, and their path as a schedule.

  python -m benchmarks.studies.two_towers.compare                            # 8,000 pairs, batch 128
  python -m benchmarks.studies.two_towers.compare --batch 256 --size 31000   # 5 epochs
  python -m benchmarks.studies.two_towers.compare --size 31000 --options-from 8000x128x10
  python -m benchmarks.studies.two_towers.compare --methods infonce tempnet-ours --seeds 0 1
  python -m benchmarks.studies.two_towers.compare --methods infonce infonce-tempnet rgcl-g tempnet-ours

A run takes about a minute on one thread at 8,000 pairs. Interrupt it with Ctrl-C; the same command resumes it.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import TUNING_SEED, Job, Options, all_done, tuned_and_tested
from benchmarks.studies.common.summary import publish, published, summarise
from benchmarks.studies.two_towers.data import Setting
from benchmarks.studies.two_towers.methods import METHODS
from benchmarks.studies.two_towers.tables import TITLE, metrics, table
from benchmarks.studies.two_towers.training import trained

TUNED_AT, OURS = 8_000, "tempnet-ours"
NETWORKS = ("tempnet-paper", OURS)
TABLE = ("infonce", "cyclip", "sogclr", "isogclr", "fastclip-v3", "tempnet-paper", OURS)
#: Methods that all others are compared with.
REFERENCES = ("infonce", "infonce-constant", "tempnet-paper", OURS)


def run(method: str, seed: int, options: Options, **rest: Any) -> dict[str, Any]:
    """One run, in any process."""
    setting = Setting(**rest.pop("setting"))
    return trained(METHODS[method], setting, seed, options, **rest)


def study(setting: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tune, test, and add TempNet's controls; results of the test runs."""
    tuning, folder = setting | {"size": TUNED_AT, "epochs": 10}, options.out / "runs"

    def job_of(method: str, seed: int, chosen: Options) -> Job:
        shared = tuning if seed == TUNING_SEED else setting
        return Job(method, seed, chosen, folder / Setting(**shared).name, run, extra={"setting": shared})

    trials = {method: METHODS[method].trials(options.rates) for method in options.methods}
    tests = tuned_and_tested(job_of, trials, options.seeds, options.workers, _known(options.options_from))
    if options.no_controls:
        return tests
    controls = _controls(tests, folder / Setting(**setting).name, setting)
    return tests + all_done(controls, options.workers, "controls")


def _known(section: str | None) -> dict[str, Options]:
    """Options of every method in a section of the published results."""
    if section is None:
        return {}
    sections = published("two_towers")
    if section not in sections:
        raise SystemExit(
            f"--options-from: expected a section of the results, received {section!r}. "
            f"Type one of {', '.join(sections)}"
        )
    return {record["method"]: record["options"] for record in sections[section].records}


def _controls(tests: list[dict[str, Any]], folder: Path, setting: dict[str, Any]) -> list[Job]:
    """The same loss at the mean of each network's last temperatures, and along the path of their mean."""
    jobs = []
    for test in tests:
        if test["method"] in NETWORKS:
            which = test["method"].removeprefix("tempnet-")
            options = {"lr": test["options"]["lr"], "tau": round(statistics.mean(test["taus"][-50:]), 5)}
            for label, more in (("same-mean", {}), ("same-path", {"path": test["taus"]})):
                name, extra = f"{label}-{which}", {"setting": setting, **more}
                jobs.append(Job("sogclr", test["seed"], options, folder, run, name, extra))
    return jobs


def compared(setting: dict[str, Any], options: argparse.Namespace) -> None:
    """Run the study under one setting and publish its summary and table."""
    summary = summarise(
        study(setting, options), metrics, compared=("mean_r1",), references=REFERENCES, about=setting
    )
    publish("two_towers", TITLE, Setting(**setting).name, summary, table(summary, OURS), options)


def arguments(doc: str | None, methods: Sequence[str], out: str) -> argparse.ArgumentParser:
    """The command line of both comparisons on these pairs."""
    result = parser(doc, out, methods=METHODS, default=methods)
    result.add_argument("--size", type=int, default=8_000, help="training pairs (default: %(default)s)")
    result.add_argument("--batch", type=int, default=128, help="pairs per step (default: %(default)s)")
    result.add_argument("--epochs", type=int, help="default: 10, or 5 above 8,000 pairs")
    result.add_argument(
        "--rates", nargs="+", type=float, help="learning rates of the trials (default: each method's own)"
    )
    result.add_argument(
        "--options-from",
        metavar="SECTION",
        help="use the options chosen in this section of benchmarks/results/two_towers.json, without trials",
    )
    result.add_argument("--no-controls", action="store_true", help="leave out the two controls")
    return result


def shared_setting(options: argparse.Namespace) -> dict[str, Any]:
    """Size, batch and epochs."""
    epochs = options.epochs or (10 if options.size <= TUNED_AT else 5)
    return {"size": options.size, "batch": options.batch, "epochs": epochs}


def main() -> None:
    """Run the study."""
    options = arguments(__doc__, TABLE, "runs/two_towers").parse_args()
    compared(shared_setting(options), options)


if __name__ == "__main__":
    main()
