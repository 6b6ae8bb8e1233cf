"""What makes predicted temperatures collapse, and what makes them reach the optimum: one change at a time.

8,000 glyph-caption pairs, batch 128, 10 epochs, rho 2.5, the same learning rate of the encoders for every variant, no
tuning. Five data splits, each with its own seed. The recovered share of the optimum's gain is measured over the whole
training set, for 500 of its pairs. A run takes about a minute on one thread; finished runs are stored.

  python -m benchmarks.studies.two_towers.ablation
  python -m benchmarks.studies.two_towers.ablation --seeds 0 --workers 1
  python -m benchmarks.studies.two_towers.ablation --size 31000 --epochs 5
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import Job, Options, all_done
from benchmarks.studies.common.summary import Summary, publish, summarise
from benchmarks.studies.common.tables import cells, markdown
from benchmarks.studies.two_towers.ablation_methods import ABLATION, LR, RHO
from benchmarks.studies.two_towers.data import Setting
from benchmarks.studies.two_towers.training import trained

TITLE = "Parts of a temperature network on glyph-caption pairs: recovered share and R@1 in percent"
#: Variants that all others are compared with.
REFERENCES = ("paper", "hidden, residual, held, queue", "constant")
COLUMNS = {
    "recovered_image": ("recovered (%): images", 0),
    "recovered_text": ("names", 0),
    "rank_image": ("rank correlation: images", 2),
    "rank_text": ("names", 2),
    "tau_std": ("spread of τ, images: its own", 4),
    "optimum_std": ("optimum's", 4),
    "tau_lowest": ("lowest mean τ", 3),
    "tau_last": ("last", 3),
    "mean_r1": ("mean R@1", 1),
}


def run(method: str, seed: int, options: Options, *, tuning: bool, setting: Setting) -> dict[str, Any]:
    """One run, in any process."""
    return trained(ABLATION[method], setting, seed, options, tuning=tuning)


def metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """How close temperatures of training pairs come to the optimal ones, their mean over training, and R@1."""
    gap = run["gap"]
    values = {f"recovered_{view}": 100 * gap[view]["recovered"] for view in gap}
    if all(gap[view]["tau_std"] > 0 for view in gap):  # a single temperature has no ranks
        values |= {f"rank_{view}": gap[view]["rank_correlation"] for view in gap}
    values |= {name: gap["image"][name] for name in ("tau_std", "optimum_std")}
    values |= {"tau_lowest": min(run["taus"]), "tau_last": run["taus"][-1]}
    return values | {"mean_r1": run["metrics"]["mean_r1"]}


def table(summary: Summary) -> str:
    """One row for each variant."""
    digits = {name: places for name, (_, places) in COLUMNS.items()}
    rows = [[record["method"], *cells(record, **digits)] for record in summary.records]
    return markdown(["predictor", *(title for title, _ in COLUMNS.values())], rows)


def main() -> None:
    """Run the ablation."""
    arguments = parser(__doc__, "runs/two_towers_ablation", methods=ABLATION)
    arguments.add_argument("--size", type=int, default=8_000, help="training pairs (default: %(default)s)")
    arguments.add_argument("--batch", type=int, default=128, help="pairs per step (default: %(default)s)")
    arguments.add_argument("--epochs", type=int, default=10, help="passes over them (default: %(default)s)")
    options = arguments.parse_args()
    fixed = {"lr": LR, "rho": RHO}
    setting = Setting(options.size, options.batch, options.epochs)
    folder, extra = options.out / "runs" / setting.name, {"setting": setting}
    jobs = [
        Job(method, seed, fixed, folder, run, extra=extra)
        for seed in options.seeds
        for method in options.methods
    ]
    summary = summarise(
        all_done(jobs, options.workers, "training"),
        metrics,
        compared=("mean_r1",),
        references=REFERENCES,
        lowest=("recovered_image", "recovered_text"),
        about=asdict(setting),
    )
    publish("two_towers_ablation", TITLE, setting.name, summary, table(summary), options)


if __name__ == "__main__":
    main()
