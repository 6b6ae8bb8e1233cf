"""One temperature for a frozen classifier, or one for each image? Handwritten digits and an overconfident network.

scikit-learn's 1,797 digits: 700 for training, a fifth of their labels redrawn and memorised; 350 to fit temperatures,
150 to select options, 597 for testing. Two settings: images as they are, and noise on half of the images that were
not trained on. Every fitted method has twelve trials; for each seed (splits, noise, networks) the trial with the lowest
NLL on the 150 is tested. Networks start at the best constant of the 350. The test split is used once.

  python -m benchmarks.studies.calibration.compare    (needs scikit-learn, scipy, torchmetrics; a quarter of an hour)
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import dro_temp as dt
from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import grid, stored
from benchmarks.studies.common.summary import Summary, publish, summarise
from benchmarks.studies.common.tables import cell, cells, markdown
from dro_temp.evaluation import evaluate_classifier

TITLE = "Calibration of a frozen classifier: NLL in nats, ECE and accuracy in percent"
Split = tuple[Tensor, Tensor]
SIZES = {"train": 700, "fit": 350, "choose": 150, "test": 597}
WRONG, NOISE, EPOCHS, WIDTH = 0.2, 0.4, 150, 128
SETTINGS = {"as they are": 0.0, "half with noise": 0.5}
BOUNDS = {"tau_min": 0.2, "tau_max": 20.0}
#: Title and decimals of each metric.
COLUMNS = {"nll": ("NLL (nats)", 3), "ece": ("ECE (%)", 2), "brier": ("Brier", 4), "tau_mean": ("mean τ", 2)}
CONSTANT = "best constant"


def _residual(encoder: dt.predictors.TempNetEncoder, start: float) -> dt.TempNet:
    return dt.TempNet(encoder, readout=dt.predictors.ResidualReadout, tau_init=start, **BOUNDS)


def _statistics(start: float) -> dt.TempNet:
    return _residual(dt.predictors.StatisticsEncoder(width=32), start)


def _hidden(start: float) -> dt.TempNet:
    return _residual(dt.predictors.HiddenEncoder(WIDTH, width=32), start)


def _both(start: float) -> dt.TempNet:
    encoders = [dt.predictors.HiddenEncoder(WIDTH, width=32), dt.predictors.StatisticsEncoder(width=32)]
    return _residual(dt.predictors.SumEncoder(encoders), start)


def _logits(start: float) -> dt.TempNet:
    return dt.TempNet.for_logits(10, tau_init=start, **BOUNDS)


def _one(start: float) -> dt.LearnableTemperature:
    return dt.LearnableTemperature(1.0, **BOUNDS)  # not at the best constant, which it should learn


_LIKELIHOOD = grid(lr=(3e-4, 1e-3, 5e-3, 2e-2), steps=(25, 100, 400))
_ROBUST = grid(lr=(1e-3, 5e-3), steps=(200,), rho=(0.25, 0.5, 1.0, 1.5, 1.75, 2.0))
#: Predictor, given the temperature that networks start at, and its trials.
METHODS: dict[str, tuple[Callable[[float], dt.TemperaturePredictor], list[dict[str, float]]]] = {
    "one, learned": (_one, _LIKELIHOOD),
    "likelihood, statistics": (_statistics, _LIKELIHOOD),
    "likelihood, hidden": (_hidden, _LIKELIHOOD),
    "likelihood, hidden + statistics": (_both, _LIKELIHOOD),
    "likelihood, logits (paper)": (_logits, _LIKELIHOOD),
    "robust, statistics": (_statistics, _ROBUST),
}


def digits(noisy: float) -> dict[str, Split]:
    """The four splits, drawn with the global random generator."""
    from sklearn.datasets import load_digits

    data, order = load_digits(), torch.randperm(1797)
    images, labels = torch.tensor(data.data / 16).float()[order], torch.tensor(data.target)[order]
    n = SIZES["train"]
    labels[:n] = torch.where(torch.rand(n) < WRONG, torch.randint(10, (n,)), labels[:n])
    rest = len(labels) - n
    images[n:] += NOISE * (torch.rand(rest, 1) < noisy) * torch.randn(rest, 64)
    parts = zip(images.split(list(SIZES.values())), labels.split(list(SIZES.values())), strict=True)
    return dict(zip(SIZES, parts, strict=True))


def trained(objective: dt.Objective, data: Split, steps: int, lr: float, batch: int | None = None) -> None:
    """Train on the whole split at once, or on random batches."""
    optimizer = torch.optim.AdamW(objective.param_groups(lr=lr))
    for _ in range(steps):
        used = slice(None) if batch is None else torch.randperm(len(data[1]))[:batch]
        optimizer.zero_grad()
        objective(data[0][used], data[1][used]).loss.backward()
        optimizer.step()


def classifier(data: Split) -> dt.hosts.Classifier:
    """A frozen network that has memorised the wrong labels as well."""
    body = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    head = nn.Linear(WIDTH, 10)
    one, loss = dt.ConstantTemperature(1.0), dt.LikelihoodLoss()
    objective = dt.Objective(dt.hosts.Classifier(body, head), one, loss)
    trained(objective, data, EPOCHS * len(data[1]) // 64, 2e-3, 64)
    return dt.hosts.Classifier(body, head, frozen=True)


def best_trial(host: dt.hosts.Classifier, method: str, splits: dict[str, Split], seed: int) -> dict[str, Any]:
    """The method's trial with the lowest NLL on the split for selection."""
    build, trials = METHODS[method]
    start = evaluate_classifier(host, [splits["fit"]], validation=[splits["fit"]])[CONSTANT].tau_mean
    best: dict[str, Any] = {"nll": float("inf")}
    for options in trials:
        torch.manual_seed(1000 + seed)  # all trials start alike
        predictor = build(start)
        loss = dt.KLRobustLoss(options["rho"]) if "rho" in options else dt.LikelihoodLoss()
        objective = dt.Objective(host, predictor, loss, monitor=False)
        trained(objective, splits["fit"], int(options["steps"]), options["lr"])
        report = evaluate_classifier(
            host, [splits["choose"]], validation=[splits["fit"]], predictors=predictor
        )
        if report["predictor"].nll < best["nll"]:
            best = {"nll": report["predictor"].nll, "options": options, "predictor": predictor}
    return best


def compared(noisy: float, seed: int) -> dict[str, Any]:
    """All methods on one seed."""
    torch.manual_seed(seed)
    splits = digits(noisy)
    host = classifier(splits["train"])
    best = {method: best_trial(host, method, splits, seed) for method in METHODS}
    predictors = {method: trial["predictor"] for method, trial in best.items()}
    report = evaluate_classifier(host, [splits["test"]], validation=[splits["fit"]], predictors=predictors)
    # A constant has no options to select, so it may be fitted to those labels as well.
    more = evaluate_classifier(host, [splits["test"]], validation=[splits["fit"], splits["choose"]])
    schemes = {scheme.name: scheme for scheme in report.schemes}
    schemes["best constant, 150 more labels"] = more[CONSTANT]
    return {
        "accuracy": report.accuracy,
        "options": {method: trial["options"] for method, trial in best.items()},
        "schemes": {
            name: {key: getattr(s, key) for key in ("nll", "ece", "brier", "tau_mean")}
            for name, s in schemes.items()
        },
    }


def summary_of(runs: list[dict[str, Any]], about: Mapping[str, Any]) -> Summary:
    """Every temperature, compared with the best constant; the options that each fitted method chose, by seed."""
    tests = [
        {
            "method": name,
            "seed": run["seed"],
            "options": _by_seed([r["options"].get(name, {}) for r in runs]),
            "accuracy": run["accuracy"],
            **scheme,
        }
        for run in runs
        for name, scheme in run["schemes"].items()
    ]
    compared = ("nll", "ece", "brier")
    return summarise(tests, metrics, compared=compared, references=(CONSTANT,), about=about)


def metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """ECE in percent."""
    return {
        "nll": run["nll"],
        "ece": 100 * run["ece"],
        "brier": run["brier"],
        "tau_mean": run["tau_mean"],
        "accuracy": run["accuracy"],
    }


def _by_seed(options: list[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [each[key] for each in options] for key in options[0]}


def table(summary: Summary) -> str:
    """Means over seeds, and each temperature minus the best constant, paired."""
    gains = {key: summary.family(CONSTANT, key) for key in ("nll", "ece")}
    header = ["temperature", *(title for title, _ in COLUMNS.values())]
    header += ["NLL, difference", "ECE, difference", "seeds better (NLL, ECE)"]
    rows = []
    for record in summary.records:
        method = record["method"]
        compared = [each[method] for each in gains.values() if method in each]
        texts = [gain.text(digits=3) for gain in compared] or ["", ""]
        better = ", ".join(str(gain.lower) for gain in compared)
        digits = {name: places for name, (_, places) in COLUMNS.items()}
        rows.append([method, *cells(record, **digits), *texts, better])
    return markdown(header, rows)


def main() -> None:
    """Run both settings with every seed."""
    options = parser(__doc__, "runs/calibration", seeds=range(10, 15), workers=None).parse_args()
    torch.set_num_threads(1)
    for setting, noisy in SETTINGS.items():
        runs = []
        for seed in options.seeds:
            file = options.out / "runs" / f"{setting.replace(' ', '_')}-{seed}.json"
            run = stored(file, lambda noisy=noisy, seed=seed: compared(noisy, seed))  # type: ignore[misc]
            runs.append({"seed": seed, **run})
            print(f"{setting}, seed {seed}: accuracy {run['accuracy']:.1f} %", flush=True)
        summary = summary_of(runs, {"noisy": noisy})
        text = f"Digits {setting}: accuracy {cell(summary.records[0]['accuracy'])} %\n\n{table(summary)}"
        publish("calibration", TITLE, setting, summary, text, options)


if __name__ == "__main__":
    main()
