"""The paper's CLIP table, small: who retrieves best, and do temperatures for each input help?

Glyph-caption pairs, 8,000 or all 31,000 of the training fonts, batches of 128 or 256. Every arm gets four trials (two
learning rates, two values of what matters most to it) on a division of the data of their own, at 8,000 pairs and the
same batch; the trial of the best validation R@1 is trained on five other divisions, each with a seed of its own, and
tested. Beside TempNet stand two controls: the mean of its temperatures as a constant, and their path as a schedule.

  python benchmarks/reproduction/clip_table.py                               # 8,000 pairs, batch 128
  python benchmarks/reproduction/clip_table.py --batch 256 --size 31000      # 5 epochs there
  python benchmarks/reproduction/clip_table.py --size 31000 --chosen benchmarks/results/reproduction-clip-8000x128.json
  python benchmarks/reproduction/clip_table.py --arms infonce tempnet-ours --seeds 0 1   # a part of it
  python benchmarks/reproduction/clip_table.py --arms infonce infonce-tempnet rgcl-g tempnet-ours   # TempNet x DRO

A run takes about a minute on one thread at 8,000 pairs. Stopped with Ctrl-C, it goes on where it was.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from glyph_pairs.arms import ARMS
from glyph_pairs.data import Setting
from glyph_pairs.run import trained
from glyph_pairs.tables import table

from reproduction.study import TUNING_SEED, Job, all_done, job, tuned_and_tested

TUNED_AT, OURS = 8_000, "tempnet-ours"
NETWORKS = ("tempnet-paper", OURS)
TABLE = ("infonce", "cyclip", "sogclr", "isogclr", "fastclip-v3", "tempnet-paper", OURS)


def run(arm: str, seed: int, options: dict[str, float], **rest: Any) -> dict[str, Any]:
    """One run, in whatever process."""
    setting = Setting(**rest.pop("setting"))
    return trained(ARMS[arm], setting, seed, options, **rest)


def study(arms: list[str], setting: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Tune, test, and add TempNet's controls."""
    tuning, folder = setting | {"size": TUNED_AT, "epochs": 10}, options.out / "runs"

    def job_of(arm: str, seed: int, chosen: dict[str, float]) -> Job:
        shared = tuning if seed == TUNING_SEED else setting
        return job(run, folder / Setting(**shared).name, arm, seed, chosen, setting=shared)

    trials = {arm: ARMS[arm].trials(options.rates) for arm in arms}
    best, tests = tuned_and_tested(job_of, trials, options.seeds, options.workers, _chosen(options.chosen))
    if not options.no_controls:
        controls = _controls(tests, folder / Setting(**setting).name, setting)
        tests += all_done(controls, options.workers, "controls")
    return {"setting": setting, "chosen": best, "tests": tests}


def _chosen(results: Path | None) -> dict[str, dict[str, float]]:
    """Options of every arm that was tested before."""
    tests = json.loads(results.read_text())["tests"] if results else []
    return {test["arm"]: test["options"] for test in tests}


def _controls(tests: list[dict[str, Any]], folder: Path, setting: dict[str, Any]) -> list[Job]:
    """The same loss, at the mean of each network's last temperatures and along the path of their mean."""
    jobs = []
    for test in tests:
        if test["arm"] in NETWORKS:
            which = test["arm"].removeprefix("tempnet-")
            last = statistics.mean(test["taus"][-50:])
            options = {"lr": test["options"]["lr"], "tau": round(last, 5)}
            for label, more in (("same-mean", {}), ("same-path", {"path": test["taus"]})):
                extra = {"setting": setting, **more}
                jobs.append(
                    job(run, folder, "sogclr", test["seed"], options, label=f"{label}-{which}", **extra)
                )
    return jobs


def options_of(
    description: str,
    arms: tuple[str, ...],
    out: str,
    more: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """What is typed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(arms), help="which to compare")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of the test runs")
    parser.add_argument("--size", type=int, default=8_000, help="training pairs")
    parser.add_argument("--batch", type=int, default=128, help="pairs per step")
    parser.add_argument("--epochs", type=int, help="10, or 5 above 8,000 pairs")
    parser.add_argument(
        "--rates", nargs="+", type=float, help="learning rates tried (default: each arm's own)"
    )
    parser.add_argument(
        "--chosen",
        type=Path,
        metavar="RESULTS",
        help="take each arm's options from these results, without trials",
    )
    parser.add_argument("--no-controls", action="store_true", help="leave the two controls out")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of runs and tables")
    more(parser)
    options = parser.parse_args()
    if TUNING_SEED in options.seeds:
        parser.error(f"--seeds: {TUNING_SEED} is the seed of the trials; test with others")
    options.epochs = options.epochs or (10 if options.size <= TUNED_AT else 5)
    return options


def written(found: dict[str, Any], options: argparse.Namespace, name: str) -> None:
    """Print the table and write it beside the numbers."""
    text = table(found["chosen"], found["tests"], OURS)
    (options.out / f"{name}.json").write_text(json.dumps(found, indent=1))
    (options.out / f"{name}.md").write_text(text + "\n")
    print(text)


def main() -> None:
    """Run the study."""
    assert __doc__ is not None
    options = options_of(__doc__, TABLE, "runs/reproduction/clip")
    setting = {"size": options.size, "batch": options.batch, "epochs": options.epochs}
    written(study(options.arms, setting, options), options, f"clip-{Setting(**setting).name}")


if __name__ == "__main__":
    main()
