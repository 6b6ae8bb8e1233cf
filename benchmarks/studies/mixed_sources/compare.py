r"""Pairs from three sources whose captions are wrong to 0, 30 and 70 %: what do temperatures and weights gain?

Glyph-caption pairs; a source shows by a mark in the image (two grey rows, two grey columns, none), and its wrong
captions are those of other pairs of the same source. Every method gets six trials (two learning rates, three values of
its most important option) on a division of its own, chosen by R@1 on right validation captions; the best is trained and
tested on eight other divisions. Tested are images with every mark, of seen and unseen names, both ways.

  python -m benchmarks.studies.mixed_sources.compare
  python -m benchmarks.studies.mixed_sources.compare --noise 0 0.2 0.4
  python -m benchmarks.studies.mixed_sources.compare --noise 0.33 0.33 0.33   # the control: sources alike
  python -m benchmarks.studies.mixed_sources.compare --unmarked               # the control: sources do not show
  python -m benchmarks.studies.mixed_sources.compare --long-tail
  python -m benchmarks.studies.mixed_sources.compare --methods sogclr optimistic --seeds 0 1
  python -m benchmarks.studies.mixed_sources.compare --device cuda --large --size 31000 --batch 4096 --epochs 30 \
    --methods infonce-constant sogclr optimistic --seeds 0 1 2 3 4      # on a GPU, in minutes

A run takes about a minute on one thread. Interrupt it with Ctrl-C; the same command resumes it.
"""

import argparse
from dataclasses import replace
from typing import Any

from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import Job, Options, all_done, tuned_and_tested
from benchmarks.studies.common.summary import publish, summarise
from benchmarks.studies.mixed_sources.data import Setting
from benchmarks.studies.mixed_sources.methods import CONTROLS, METHODS, RATES
from benchmarks.studies.mixed_sources.tables import TITLE, metrics, table
from benchmarks.studies.mixed_sources.training import trained

#: Methods that all others are compared with.
REFERENCES = ("sogclr", "entropic-constant", "optimistic")


def run(method: str, seed: int, options: Options, **rest: Any) -> dict[str, Any]:
    """One run, in any process."""
    setting = rest.pop("setting")
    return trained(
        (METHODS | CONTROLS)[method],
        Setting(**setting | {"noise": tuple(setting["noise"])}),
        seed,
        options,
        **rest,
    )


def study(setting: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tune and test; results of the test runs."""
    folder = options.out / "runs" / Setting(**setting).name

    def job_of(method: str, seed: int, chosen: Options) -> Job:
        return Job(method, seed, chosen, folder, run, extra={"setting": setting, "device": options.device})

    trials = {method: METHODS[method].trials(options.rates) for method in options.methods}
    tests = tuned_and_tested(job_of, trials, options.seeds, options.workers)
    controls = [
        replace(job, extra=job.extra | ({"path": test["taus"]} if "path" in name else {}))
        for test in tests
        if test["method"] == "network" and not options.no_controls
        for name in CONTROLS
        for job in [job_of(name, test["seed"], test["options"])]
    ]
    return tests + all_done(controls, options.workers, "controls")


def main() -> None:
    """Run the study."""
    result = parser(__doc__, "runs/mixed_sources", methods=METHODS, seeds=range(8))
    result.add_argument("--size", type=int, default=8_000, help="training pairs (default: %(default)s)")
    result.add_argument("--batch", type=int, default=128, help="pairs per step (default: %(default)s)")
    result.add_argument("--epochs", type=int, default=10, help="passes over them (default: %(default)s)")
    result.add_argument(
        "--noise",
        nargs="+",
        type=float,
        default=[0.0, 0.3, 0.7],
        help="share of wrong captions in each source (default: %(default)s)",
    )
    result.add_argument("--unmarked", action="store_true", help="images do not show their source")
    result.add_argument("--long-tail", action="store_true", help="names are as rare as Zipf's law makes them")
    result.add_argument("--large", action="store_true", help="encoders of 3 million parameters")
    result.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=RATES,
        help="learning rates of the trials (default: %(default)s)",
    )
    result.add_argument("--no-controls", action="store_true", help="leave out the network's controls")
    result.add_argument("--device", default="cpu", help="where to train, such as cuda (default: %(default)s)")
    options = result.parse_args()
    if options.device != "cpu":
        options.workers = 1
    setting = {
        "size": options.size,
        "batch": options.batch,
        "epochs": options.epochs,
        "noise": tuple(options.noise),
        "marked": not options.unmarked,
        "long_tail": options.long_tail,
        "large": options.large,
    }
    runs = study(setting, options)
    summary = summarise(runs, metrics, compared=("mean_r1",), references=REFERENCES, about=setting)
    publish("mixed_sources", TITLE, Setting(**setting).name, summary, table(summary), options)


if __name__ == "__main__":
    main()
