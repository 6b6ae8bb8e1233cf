"""One temperature for a frozen classifier, or one for every image? Handwritten digits, a network that is too sure.

scikit-learn's 1,797 digits: 700 to train on, a fifth of their labels redrawn and learned by heart; 350 to fit
temperatures to, 150 to choose options on, 597 to test on. Two settings: images as they are, and noise on half of those
that were not trained on. Every fitted arm has twelve trials; for each seed (splits, noise, networks) the one of the
lowest NLL on the 150 is tested. Networks start at the best constant of the 350. The test split is looked at once.

  python benchmarks/calibration.py          (needs scikit-learn, scipy, torchmetrics; a quarter of an hour)
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness.study import cell, kept
from reproduction.paired import against

import dro_temp as dt
from dro_temp.evaluation import evaluate_classifier

Split = tuple[Tensor, Tensor]
SIZES = {"train": 700, "fit": 350, "choose": 150, "test": 597}
WRONG, NOISE, EPOCHS, WIDTH = 0.2, 0.4, 150, 128
SETTINGS = {"as they are": 0.0, "half with noise": 0.5}
BOUNDS = {"tau_min": 0.2, "tau_max": 20.0}
METRICS = {"nll": ("NLL (nats)", 1, 3), "ece": ("ECE (%)", 100, 2), "brier": ("Brier", 1, 4)}
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
    return dt.LearnableTemperature(1.0, **BOUNDS)  # not where the best constant is: it is to find that


_LIKELIHOOD = [{"lr": lr, "steps": steps} for lr in (3e-4, 1e-3, 5e-3, 2e-2) for steps in (25, 100, 400)]
_ROBUST = [
    {"lr": lr, "steps": 200, "rho": r} for lr in (1e-3, 5e-3) for r in (0.25, 0.5, 1.0, 1.5, 1.75, 2.0)
]
#: Predictor, from the temperature that networks start at, and its trials.
ARMS: dict[str, tuple[Callable[[float], dt.TemperaturePredictor], list[dict[str, float]]]] = {
    "one, learned": (_one, _LIKELIHOOD),
    "likelihood, statistics": (_statistics, _LIKELIHOOD),
    "likelihood, hidden": (_hidden, _LIKELIHOOD),
    "likelihood, hidden + statistics": (_both, _LIKELIHOOD),
    "likelihood, logits (paper)": (_logits, _LIKELIHOOD),
    "robust, statistics": (_statistics, _ROBUST),
}


def digits(noisy: float) -> dict[str, Split]:
    """The four splits, by the random numbers of the moment."""
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
    """Train on all of the split at once, or on batches."""
    optimizer = torch.optim.AdamW(objective.param_groups(lr=lr))
    for _ in range(steps):
        chosen = slice(None) if batch is None else torch.randperm(len(data[1]))[:batch]
        optimizer.zero_grad()
        objective(data[0][chosen], data[1][chosen]).loss.backward()
        optimizer.step()


def classifier(data: Split) -> dt.hosts.Classifier:
    """A network that has learned the wrong labels, too; frozen."""
    body = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    head = nn.Linear(WIDTH, 10)
    one, loss = dt.ConstantTemperature(1.0), dt.LikelihoodLoss()
    objective = dt.Objective(dt.hosts.Classifier(body, head), one, loss)
    trained(objective, data, EPOCHS * len(data[1]) // 64, 2e-3, 64)
    return dt.hosts.Classifier(body, head, frozen=True)


def chosen(host: dt.hosts.Classifier, arm: str, splits: dict[str, Split], seed: int) -> dict[str, Any]:
    """The arm's trial of the lowest NLL on the split for choosing."""
    build, trials = ARMS[arm]
    start = evaluate_classifier(host, [splits["fit"]], validation=[splits["fit"]])[CONSTANT].tau_mean
    best: dict[str, Any] = {"nll": float("inf")}
    for options in trials:
        torch.manual_seed(1000 + seed)  # every trial starts alike
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
    """All arms on one seed."""
    torch.manual_seed(seed)
    splits = digits(noisy)
    host = classifier(splits["train"])
    best = {arm: chosen(host, arm, splits, seed) for arm in ARMS}
    predictors = {arm: found["predictor"] for arm, found in best.items()}
    report = evaluate_classifier(host, [splits["test"]], validation=[splits["fit"]], predictors=predictors)
    # What needs no options to be chosen may be fitted to those labels as well.
    more = evaluate_classifier(host, [splits["test"]], validation=[splits["fit"], splits["choose"]])
    schemes = {scheme.name: scheme for scheme in report.schemes}
    schemes["best constant, 150 more labels"] = more[CONSTANT]
    return {
        "accuracy": report.accuracy,
        "options": {arm: found["options"] for arm, found in best.items()},
        "schemes": {
            name: {key: getattr(s, key) for key in ("nll", "ece", "brier", "tau_mean")}
            for name, s in schemes.items()
        },
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Means over seeds, and each scheme minus the best constant, paired."""
    names = list(runs[0]["schemes"])
    values = {
        key: {n: [METRICS[key][1] * r["schemes"][n][key] for r in runs] for n in names} for key in METRICS
    }
    gains = {key: _against_constant(of) for key, of in values.items()}
    header = ["temperature", *(title for title, _, _ in METRICS.values()), "mean τ"]
    header += ["NLL, difference", "ECE, difference", "seeds better (NLL, ECE)"]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    for name in names:
        cells = [cell(values[key][name], digits=digits) for key, (_, _, digits) in METRICS.items()]
        cells.append(cell([r["schemes"][name]["tau_mean"] for r in runs], digits=2))
        cells += [gains[key][name][0] if name in gains[key] else "" for key in ("nll", "ece")]
        won = [str(gains[key][name][1]) for key in ("nll", "ece") if name in gains[key]]
        lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(won)} |")
    return "\n".join(lines)


def _against_constant(of: dict[str, list[float]]) -> dict[str, tuple[str, int]]:
    """Mean difference with its interval and Holm's p, and in how many seeds the scheme is better (lower)."""
    constant = of[CONSTANT]
    differences = {n: [a - b for a, b in zip(of[n], constant, strict=True)] for n in of if n != CONSTANT}
    # Against zero: every scheme is compared with the constant, not one of ours with all of them.
    nothing = [0.0] * len(constant)
    paired = against(nothing, {n: [-d for d in each] for n, each in differences.items()})
    found = {}
    for name, p in paired.items():
        low, high = p.interval
        better = sum(d < 0 for d in differences[name])
        found[name] = f"{p.mean:+.3f} [{low:+.3f}, {high:+.3f}], p {p.p:.2g}", better
    return found


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[10, 11, 12, 13, 14], help="of data and networks"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/calibration-study"), help="folder of runs and table"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, Any]]] = {}
    for setting, noisy in SETTINGS.items():
        for seed in options.seeds:
            file = options.out / "runs" / f"{setting.replace(' ', '_')}-{seed}.json"
            run = kept(file, lambda noisy=noisy, seed=seed: compared(noisy, seed))  # type: ignore[misc]
            results.setdefault(setting, []).append({"seed": seed, **run})
            print(f"{setting}, seed {seed}: accuracy {run['accuracy']:.1f} %", flush=True)
    (options.out / "calibration.json").write_text(json.dumps(results, indent=1))
    accuracy = {setting: cell([r["accuracy"] for r in runs]) for setting, runs in results.items()}
    text = "\n\n".join(f"Digits {s}: accuracy {accuracy[s]} %\n\n{table(r)}" for s, r in results.items())
    (options.out / "calibration.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
