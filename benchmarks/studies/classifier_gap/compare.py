"""How close a classifier's TempNet comes to the optimal temperatures while both train, on handwritten digits.

1,200 of scikit-learn's 1,797 digits, 30 % of their labels redrawn; a small convolutional network, 30 epochs, rho 1. The
recovered share is measured on the other 597. Without wrong labels a network separates every digit from all others by
any margin; temperatures then grow without bound together with the scores, and there is nothing to predict.

  python -m benchmarks.studies.classifier_gap.compare      (needs scikit-learn; two minutes on one thread)
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import dro_temp as dt
from benchmarks.studies.common.networks import digits_body
from benchmarks.studies.common.options import parser
from benchmarks.studies.common.runs import stored
from benchmarks.studies.common.summary import Summary, publish, summarise
from benchmarks.studies.common.tables import cells, markdown, number
from dro_temp.evaluation import amortisation_gap

TITLE = "Recovered share of the optimum's gain for a classifier's temperatures: share and accuracy in percent"
CLASSES, WIDTH, TRAIN, BATCH, EPOCHS, RHO = 10, 64, 1_200, 64, 30, 1.0
BOUNDS, START = {"tau_min": 0.1, "tau_max": 20.0}, 1.0


def _both() -> dt.TempNet:
    encoder = dt.predictors.SumEncoder(
        [dt.predictors.HiddenEncoder(WIDTH), dt.predictors.StatisticsEncoder()]
    )
    return dt.TempNet(encoder, tau_init=START, readout=dt.predictors.ResidualReadout, **BOUNDS)


def _hidden() -> dt.TempNet:
    return dt.TempNet(
        dt.predictors.HiddenEncoder(WIDTH), tau_init=START, readout=dt.predictors.ResidualReadout, **BOUNDS
    )


def _paper() -> dt.TempNet:
    return dt.TempNet.for_logits(CLASSES, tau_init=START, **BOUNDS)


#: Predictor, and the share of training in which temperatures stay at their start.
METHODS: dict[str, tuple[Callable[[], dt.TemperaturePredictor], float]] = {
    "paper": (_paper, 0.0),
    "paper, held": (_paper, 0.3),
    "hidden, residual, held": (_hidden, 0.3),
    "hidden + statistics, residual, held": (_both, 0.3),
    "hidden + statistics, residual, not held": (_both, 0.0),
}


def trained(method: str, seed: int, noise: float) -> dict[str, float]:
    """One run."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None]
    right, labels = (torch.tensor(digits.target) for _ in range(2))
    torch.manual_seed(seed)
    order = torch.randperm(len(images))
    train, test = order[:TRAIN], order[TRAIN:]
    redrawn = train[: round(noise * TRAIN)]
    labels[redrawn] = torch.randint(CLASSES, (len(redrawn),))
    build, hold = METHODS[method]
    host = dt.hosts.Classifier(digits_body(WIDTH), nn.Linear(WIDTH, CLASSES))
    objective = dt.Objective(host, build(), dt.KLRobustLoss(RHO), monitor=False)
    optimizer = torch.optim.AdamW(objective.param_groups(lr=2e-3, tau_lr=5e-3))
    total = EPOCHS * TRAIN // BATCH

    def cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / total))

    scheduler = dt.hold_temperatures(optimizer, steps=max(1, round(hold * total)), schedule=cosine)
    for _ in range(total):
        batch = train[torch.randint(TRAIN, (BATCH,))]
        optimizer.zero_grad()
        objective(images[batch], labels[batch]).loss.backward()
        optimizer.step()
        scheduler.step()
    objective.eval()
    with torch.no_grad():
        predicted = host(images[test], right[test])["class"].dense_scores.argmax(1)
    gap = amortisation_gap(objective, [(images[test], right[test])])["class"]
    return {
        "accuracy": 100 * float((predicted == right[test]).double().mean()),
        "recovered": gap.recovered,
        "rank_correlation": gap.rank_correlation,
        "tau_mean": gap.tau.mean,
        "tau_std": gap.tau.std,
        "optimum_std": gap.optimum.std,
    }


def metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """Share and accuracy in percent."""
    names = ("rank_correlation", "tau_mean", "tau_std", "optimum_std", "accuracy")
    return {"recovered": 100 * run["recovered"], **{name: run[name] for name in names}}


def table(summary: Summary) -> str:
    """One row for each method."""
    header = ["predictor", "recovered (%): mean", "worst seed", "rank correlation", "mean τ", "its spread"]
    digits = {"rank_correlation": 2, "tau_mean": 2, "tau_std": 2, "optimum_std": 2, "accuracy": 1}
    rows = []
    for record in summary.records:
        shares = (record["recovered"][0], record["recovered_min"])
        rows.append([record["method"], *map(number, shares), *cells(record, **digits)])
    return markdown([*header, "optimum's", "accuracy"], rows)


def main() -> None:
    """Run all methods with every seed."""
    arguments = parser(__doc__, "runs/classifier_gap", workers=None)
    arguments.add_argument(
        "--noise", type=float, default=0.3, help="share of redrawn training labels (default: %(default)s)"
    )
    options = arguments.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in options.seeds:
        for method in METHODS:
            file = options.out / "runs" / f"{method}-{seed}-{options.noise:g}.json"
            result = stored(file, lambda m=method, s=seed: trained(m, s, options.noise))  # type: ignore[misc]
            runs.append({"method": method, "seed": seed, "options": {}, **result})
            print(f"{method}, seed {seed}: recovered {100 * result['recovered']:.1f} %", flush=True)
    setting = {"noise": options.noise, "rho": RHO, "epochs": EPOCHS, "batch": BATCH, "train": TRAIN}
    summary = summarise(runs, metrics, compared=("accuracy",), lowest=("recovered",), about=setting)
    publish("classifier_gap", TITLE, f"digits-{options.noise:g}", summary, table(summary), options)


if __name__ == "__main__":
    main()
