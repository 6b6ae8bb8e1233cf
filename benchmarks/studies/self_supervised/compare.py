"""Four unimodal contrastive schemes and simple baselines: do a frozen backbone's features identify characters?

A timm backbone is trained on two augmented views of each of 1,800 glyphs (200 characters in nine fonts) without labels;
its frozen features then classify characters in fonts that training never saw. Each scheme gets two trials (its
temperature or radius) at one learning rate, on a data split of their own; the trial with the best validation kNN is
trained and tested on five others, each with its own seed. Baselines: the untrained backbone, and raw pixels. Controls:
the two schemes with a constant temperature at the one that they did not choose, which separates loss from temperature.

  python -m benchmarks.studies.self_supervised.compare         # 50 runs of at most half a minute on one thread
  python -m benchmarks.studies.self_supervised.compare --methods simclr tempnet --seeds 0 1

Interrupt it with Ctrl-C; the same command resumes it.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from two_views.config import SCHEMES, Options
from two_views.data import load
from two_views.evaluation import evaluate, pixels
from two_views.model import Encoder
from two_views.training import Run

from benchmarks.studies.common.options import parser
from benchmarks.studies.common.paired import Paired
from benchmarks.studies.common.runs import Job, all_done, tuned_and_tested
from benchmarks.studies.common.summary import Summary, publish, summarise
from benchmarks.studies.common.tables import cell, markdown, named

TITLE = "Features learned from two views: kNN and linear-probe accuracy in percent"
NOT_CHOSEN = ", not chosen"
SETTING: dict[str, Any] = {"names": 200, "epochs": 6, "batch_size": 64, "lr": 2e-3}
CONSTANT, UNTRAINED, BASELINE = ("simclr", "sogclr"), ("untrained", "pixels"), "simclr"
TRIALS: dict[str, list[dict[str, float]]] = {
    "simclr": [{"tau": 0.1}, {"tau": 0.2}],
    "sogclr": [{"tau": 0.1}, {"tau": 0.2}],
    "isogclr": [{"rho": 0.5}, {"rho": 1.5}],
    "tempnet": [{"rho": 0.5}, {"rho": 1.5}],
    "untrained": [{}],
    "pixels": [{}],
}


def run(
    method: str, seed: int, options: dict[str, float], *, tuning: bool, setting: dict[str, Any]
) -> dict[str, Any]:
    """One run, in any process; a trial does not touch the test images."""
    start, data = time.process_time(), load(setting["names"], seed)
    if method in UNTRAINED:
        torch.manual_seed(seed)
        features = pixels if method == "pixels" else Encoder(Options().backbone).backbone
        values = evaluate(features, data, test=not tuning)
        return {"chosen_by": -values["val_knn"], "metrics": values}
    training = Run(Options(scheme=method, **setting, **options), seed, data.train.images)  # type: ignore[arg-type]
    training.fit()
    values = evaluate(training.encoder.backbone, data, test=not tuning)
    for view, tau in training.temperatures().items():
        values |= {f"{view}_tau_mean": float(tau.mean()), f"{view}_tau_std": float(tau.std())}
    return {"chosen_by": -values["val_knn"], "metrics": values, "seconds": time.process_time() - start}


def metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies on test images, and temperatures averaged over both views."""
    values = {key: run["metrics"][key] for key in ("knn", "probe") if key in run["metrics"]}
    if "first_tau_mean" in run["metrics"]:
        for name in ("tau_mean", "tau_std"):
            values[name] = statistics.mean(run["metrics"][f"{view}_{name}"] for view in ("first", "second"))
    return values


def table(summary: Summary) -> str:
    """One row for each method; differences to SimCLR are paired by seed."""
    header = ["features", "chosen", "kNN (%)", "minus SimCLR", "linear probe (%)", "minus SimCLR"]
    # The three other schemes form one family of tests; baselines and controls do not belong to it.
    others = [m for m in SCHEMES if m in summary.methods]
    compared = {key: summary.family(BASELINE, key, others) for key in ("knn", "probe")}
    rows = []
    for record in summary.records:
        row = [record["method"], named(record["options"])]
        for key, gains in compared.items():
            row += [cell(record[key]), _difference(gains.get(record["method"]))]
        taus = [f"{record[name][0]:.3f}" for name in ("tau_mean", "tau_std") if name in record]
        rows.append([*row, "{} ({})".format(*taus) if taus else ""])
    return markdown([*header, "τ: mean (std)"], rows, words=2)


def at_the_same_temperature(summary: Summary) -> list[str]:
    """SogCLR minus SimCLR at each temperature, chosen or not: the effect of the loss alone."""
    methods = {
        (record["method"].removesuffix(NOT_CHOSEN), record["options"].get("tau")): record["method"]
        for record in summary.records
    }
    lines = []
    for tau in sorted(tau for method, tau in methods if method == CONSTANT[0] and tau is not None):
        simclr, sogclr = (methods.get((method, tau)) for method in CONSTANT)
        gain = summary.minus(sogclr, simclr, "knn") if simclr and sogclr else None
        if gain is not None:
            lines.append(f"kNN at tau {tau:g}, SogCLR minus SimCLR: {_difference(gain)}")
    return lines


def _difference(gain: Paired | None) -> str:
    """Mean, 95 % interval, p-value, and the number of seeds in which the scheme is better."""
    return "" if gain is None else f"{gain.text(digits=1)}, {gain.higher} of {gain.seeds}"


def main() -> None:
    """Run the study."""
    methods = [*SCHEMES, *UNTRAINED]
    arguments = parser(__doc__, "runs/self_supervised_study", methods=methods, workers=1)
    arguments.add_argument(
        "--names", type=int, default=SETTING["names"], help="number of characters (default: %(default)s)"
    )
    arguments.add_argument(
        "--epochs", type=int, default=SETTING["epochs"], help="passes over the glyphs (default: %(default)s)"
    )
    options = arguments.parse_args()
    setting = SETTING | {"names": options.names, "epochs": options.epochs}
    section = f"{options.names}x{options.epochs}"
    folder, extra = options.out / "runs" / section, {"setting": setting}

    def job_of(method: str, seed: int, chosen: dict[str, float]) -> Job:
        return Job(method, seed, chosen, folder, run, extra=extra)

    trials = {method: TRIALS[method] for method in options.methods}
    tests = tuned_and_tested(job_of, trials, options.seeds, options.workers)
    controls = [
        Job(test["method"], test["seed"], other, folder, run, f"{test['method']}{NOT_CHOSEN}", extra)
        for test in tests
        if test["method"] in CONSTANT
        for other in TRIALS[test["method"]]
        if other != test["options"]
    ]
    tests += all_done(controls, options.workers, "controls")
    summary = summarise(tests, metrics, compared=("knn", "probe"), about=setting)
    text = "\n\n".join([table(summary), *at_the_same_temperature(summary)])
    publish("self_supervised", TITLE, section, summary, text, options)


if __name__ == "__main__":
    main()
