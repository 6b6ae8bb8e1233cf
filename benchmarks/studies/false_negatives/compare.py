"""Pairs of the same name in a batch: left out of the negatives, taken as positives, or left to the robust loss?

Glyph-caption pairs, 8,000 of some 1,800 names: a batch of 128 holds some five pairs of images with one name, one of 512
some eighty. Every method gets four trials (two learning rates, two values of its most important option) on a division
of its own, chosen by R@1 on validation; the best is trained and tested on five other divisions.

  python -m benchmarks.studies.false_negatives.compare
  python -m benchmarks.studies.false_negatives.compare --batch 512 --epochs 20

A run takes half a minute on one thread. Interrupt it with Ctrl-C; the same command resumes it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

import dro_temp as dt
from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import Job, Options, tuned_and_tested
from benchmarks.studies.common.summary import Summary, publish, summarise
from benchmarks.studies.common.tables import cells, markdown, named
from benchmarks.studies.two_towers.data import Setting
from benchmarks.studies.two_towers.methods import METHODS as TWO_TOWERS
from benchmarks.studies.two_towers.methods import Method, Schedule
from benchmarks.studies.two_towers.tables import metrics
from benchmarks.studies.two_towers.training import Training, tested
from dro_temp.interfaces import HostAdapter

TITLE = "Retrieval on glyph-caption pairs with and without their false negatives: R@1 in percent"
#: The mark of methods that are told which pairs have the same name.
TOLD = ", names as groups"
REFERENCES = ("infonce-constant", "sogclr", "tempnet-ours")
COLUMNS = ("seen_i2n", "seen_n2i", "unseen_i2n", "unseen_n2i", "mean_r1")


def _supcon(host: HostAdapter, s: Schedule, o: dict[str, float]) -> dt.Objective:
    return dt.recipes.supcon(host, tau=o["tau"])


METHODS = {
    method.name: method
    for plain in (TWO_TOWERS[name] for name in REFERENCES)
    for method in (plain, replace(plain, name=plain.name + TOLD))
} | {"supcon" + TOLD: Method("supcon" + TOLD, _supcon, ("tau", (0.07, 0.1)))}


class GroupedTraining(Training):
    """A method that may be told which pairs have the same name."""

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The pairs with these indices, and the numbers of their names as groups."""
        pairs = super().batch(index)
        return pairs | {"group": self.names[index]} if self.method.name.endswith(TOLD) else pairs


def run(method: str, seed: int, options: Options, *, tuning: bool, setting: dict[str, Any]) -> dict[str, Any]:
    """One run, in any process."""
    return tested(GroupedTraining(METHODS[method], Setting(**setting), seed, options), tuning=tuning)


def _metrics(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics(found).items() if name in (*COLUMNS, "tau_last")}


def table(summary: Summary) -> str:
    """One row for each method, with its difference from the plain robust loss and from itself without groups."""
    gains = summary.family("sogclr", "mean_r1")
    rows = []
    for record in summary.records:
        method = record["method"]
        told = summary.minus(method, method.removesuffix(TOLD), "mean_r1") if method.endswith(TOLD) else None
        row = [method, named(record["options"]), *cells(record, **dict.fromkeys(COLUMNS, 1))]
        gain = gains.get(method)
        rows.append([*row, "" if gain is None else gain.text(), "" if told is None else told.text()])
    titles = (
        "seen i→n",
        "seen n→i",
        "unseen i→n",
        "unseen n→i",
        "mean R@1",
        "minus sogclr",
        "minus the same untold",
    )
    return markdown(["method", "chosen", *titles], rows, words=2)


def main() -> None:
    """Run the study."""
    arguments = parser(__doc__, "runs/false_negatives", methods=METHODS)
    arguments.add_argument("--size", type=int, default=8_000, help="training pairs (default: %(default)s)")
    arguments.add_argument("--batch", type=int, default=128, help="pairs per step (default: %(default)s)")
    arguments.add_argument("--epochs", type=int, default=10, help="passes over them (default: %(default)s)")
    options = arguments.parse_args()
    setting = {"size": options.size, "batch": options.batch, "epochs": options.epochs}
    section = Setting(**setting).name

    def job_of(method: str, seed: int, chosen: Options) -> Job:
        return Job(method, seed, chosen, options.out / "runs" / section, run, extra={"setting": setting})

    trials = {method: METHODS[method].trials() for method in options.methods}
    runs = tuned_and_tested(job_of, trials, options.seeds, options.workers)
    summary = summarise(runs, _metrics, compared=("mean_r1",), references=REFERENCES, about=setting)
    publish("false_negatives", TITLE, section, summary, table(summary), options)


if __name__ == "__main__":
    main()
