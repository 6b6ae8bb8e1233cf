"""How near to the optimal temperatures a classifier's TempNet comes while both train: handwritten digits.

1,200 of scikit-learn's 1,797 digits, three tenths of their labels redrawn, a small convolutional network, 30 epochs,
rho 1; the share is taken on the 597 that were held out. Without wrong labels every digit is told from all others by
any margin, all temperatures grow without end together with the scores, and there is nothing to predict.

  python benchmarks/reproduction/classifier_gap.py          (needs scikit-learn; two minutes on one thread)
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.digits import digits_body
from harness.study import cell, kept

import dro_temp as dt
from dro_temp.evaluation import amortisation_gap

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


#: Predictor, and the share of the training in which it is held.
ARMS: dict[str, tuple[Callable[[], dt.TemperaturePredictor], float]] = {
    "paper": (_paper, 0.0),
    "paper, held": (_paper, 0.3),
    "hidden, residual, held": (_hidden, 0.3),
    "hidden + statistics, residual, held": (_both, 0.3),
    "hidden + statistics, residual, not held": (_both, 0.0),
}


def trained(arm: str, seed: int, noise: float) -> dict[str, float]:
    """One run."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None]
    labels, given = (torch.tensor(digits.target) for _ in range(2))
    torch.manual_seed(seed)
    order = torch.randperm(len(images))
    train, test = order[:TRAIN], order[TRAIN:]
    redrawn = train[: round(noise * TRAIN)]
    given[redrawn] = torch.randint(CLASSES, (len(redrawn),))
    build, hold = ARMS[arm]
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
        objective(images[batch], given[batch]).loss.backward()
        optimizer.step()
        scheduler.step()
    objective.eval()
    with torch.no_grad():
        found = host(images[test], labels[test])["class"].dense_scores.argmax(1)
    gap = amortisation_gap(objective, [(images[test], labels[test])])["class"]
    return {
        "accuracy": 100 * float((found == labels[test]).double().mean()),
        "recovered": gap.recovered,
        "rank_correlation": gap.rank_correlation,
        "tau_mean": gap.tau.mean,
        "tau_std": gap.tau.std,
        "optimum_std": gap.optimum.std,
    }


def table(results: list[dict[str, Any]]) -> str:
    """One row for each arm."""
    lines = [
        "| predictor | recovered (%): mean | worst seed | rank correlation | mean τ | its spread | optimum's "
        "| accuracy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in ARMS:
        runs = [r for r in results if r["arm"] == arm]
        shares = [100 * r["recovered"] for r in runs]
        cells = [f"{statistics.mean(shares):.1f}", f"{min(shares):.1f}"]
        cells += [
            cell([r[k] for r in runs], digits=2)
            for k in ("rank_correlation", "tau_mean", "tau_std", "optimum_std")
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} | {cell([r['accuracy'] for r in runs])} |")
    return "\n".join(lines)


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of data and model")
    parser.add_argument("--noise", type=float, default=0.3, help="share of the training labels redrawn")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduction/classifier"), help="folder of runs and table"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in options.seeds:
        for arm in ARMS:
            file = options.out / "runs" / f"{arm}-{seed}-{options.noise:g}.json"
            found = kept(file, lambda arm=arm, seed=seed: trained(arm, seed, options.noise))  # type: ignore[misc]
            results.append({"arm": arm, "seed": seed, **found})
            print(f"{arm}, seed {seed}: recovered {100 * found['recovered']:.1f} %", flush=True)
    (options.out / "classifier_gap.json").write_text(json.dumps(results, indent=1))
    (options.out / "classifier_gap.md").write_text(table(results) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
