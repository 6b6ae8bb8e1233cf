"""Wrong labels: which loss learns in spite of them, and what tells that a label is wrong? Handwritten digits.

scikit-learn's 1,797 digits: 900 to train on, a share of their labels redrawn, 300 with right labels to choose options
on, 597 to test on. Every arm has four trials (two learning rates, two values of what matters most to it) at a seed that
is not tested; the one of the best validation accuracy is trained with five others (divisions, noise, networks).
What tells wrong labels is measured among the training labels: AUROC of the temperature, of how little a sample weighs,
and of its loss.

  python benchmarks/noisy_labels.py                       (needs scikit-learn; some 25 minutes on two threads)
  python benchmarks/noisy_labels.py --noise 0.3 --arms cross-entropy "tilted, t < 0"

Stopped with Ctrl-C, it goes on where it was. Losses other than ours are plain PyTorch.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness.digits import digits_body
from harness.study import cell
from reproduction.paired import against
from reproduction.study import Job, job, tuned_and_tested
from wrong_labels.arms import ARMS, TRAIN, WIDTH, one, sample_entropy

import dro_temp as dt
from dro_temp.evaluation import expected_calibration_error

CLASSES, VALIDATION, BATCH, EPOCHS, BASELINE = 10, 300, 64, 40, "label smoothing"


def data(noise: float, seed: int) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """The three splits, and the right labels of the training images."""
    from sklearn.datasets import load_digits

    digits, chance = load_digits(), torch.Generator().manual_seed(seed)
    images, labels = (
        torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None],
        torch.tensor(digits.target),
    )
    parts = torch.randperm(len(images), generator=chance).split(
        [TRAIN, VALIDATION, len(images) - TRAIN - VALIDATION]
    )
    given, redrawn = labels[parts[0]].clone(), torch.rand(TRAIN, generator=chance) < noise
    given[redrawn] = torch.randint(CLASSES, (int(redrawn.sum()),), generator=chance)
    names = ("train", "validation", "test")
    splits = {name: (images[part], labels[part]) for name, part in zip(names, parts, strict=True)}
    return splits | {"train": (images[parts[0]], given)}, labels[parts[0]]


def host_of(smoothing: float) -> dt.hosts.Classifier:
    """A small convolutional network."""
    return dt.hosts.Classifier(digits_body(WIDTH), nn.Linear(WIDTH, CLASSES), label_smoothing=smoothing)


def run(name: str, seed: int, options: dict[str, float], *, tuning: bool, noise: float) -> dict[str, Any]:
    """One run, in whatever process."""
    arm, option = ARMS[name], options[ARMS[name].tuned[0]]
    splits, right = data(noise, seed)
    (images, given), torch_seed = splits["train"], torch.manual_seed(seed)
    objective = dt.Objective(
        host_of(option if arm.smoothing else 0.0),
        (arm.predictor or one)(option),
        arm.loss(option),
        watch=False,
    )
    tau_lr = option if "tau_lr" in options else 3e-3
    groups = objective.param_groups(
        lr=options["lr"], tau_lr=tau_lr, weight_decay=option if arm.decay else 0.01
    )
    optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(groups), objective)
    total = EPOCHS * (TRAIN // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * s / total))
    )
    risk = arm.risk(option) if arm.risk else dt.MeanRisk()
    for _ in range(EPOCHS):
        for index in torch.randperm(TRAIN, generator=torch_seed)[: total // EPOCHS * BATCH].split(BATCH):
            if arm.predictor is None:
                logits = objective.host(images[index], given[index])["class"].dense_scores
                loss = risk(arm.sample_loss(logits, given[index], option))
            else:
                loss = objective(images[index], given[index], index=index).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    validation = measured(objective.eval(), *splits["validation"])
    result: dict[str, Any] = {"chosen_by": -validation["accuracy"]}
    if not tuning:
        result["metrics"] = measured(objective, *splits["test"]) | detected(
            objective, risk, images, given, right
        )
    return result


@torch.no_grad()
def measured(objective: dt.Objective, images: Tensor, labels: Tensor) -> dict[str, float]:
    """At temperature 1."""
    logits = objective.host(images, labels)["class"].dense_scores
    confidence, found = logits.softmax(1).max(1)
    return {
        "accuracy": 100 * float((found == labels).double().mean()),
        "nll": float(nn.functional.cross_entropy(logits, labels)),
        "ece": 100 * expected_calibration_error(confidence, found == labels),
    }


def detected(
    objective: dt.Objective, risk: dt.SampleRisk, images: Tensor, given: Tensor, right: Tensor
) -> dict[str, float]:
    """How well wrong labels are told: by temperature, by weight, by loss."""
    from sklearn.metrics import roc_auc_score

    wrong = (given != right).numpy()
    if not wrong.any():
        return {}
    with torch.no_grad():
        rows = objective.host(images, given, torch.arange(TRAIN))["class"]
        losses = sample_entropy(rows.dense_scores, given)
        tau = objective.predictors["class"].of(rows)
    signals = {"tau": tau, "weight": -risk.weights(losses), "loss": losses}
    return {
        f"auroc_{name}": float(roc_auc_score(wrong, x.detach().numpy())) for name, x in signals.items()
    } | {
        "tau_wrong": float(tau[wrong].mean()),
        "tau_right": float(tau[~wrong].mean()),
    }


def table(tests: list[dict[str, Any]], best: dict[str, dict[str, float]]) -> str:
    """One row for each arm."""
    lines = [
        "| arm | chosen | accuracy (%) | minus label smoothing | NLL | ECE (%) | AUROC: τ | weight | loss | τ: wrong "
        "| right |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    of = {arm: sorted((t for t in tests if t["arm"] == arm), key=lambda t: t["seed"]) for arm in best}
    accuracy = {arm: [t["metrics"]["accuracy"] for t in runs] for arm, runs in of.items()}
    others = {arm: x for arm, x in accuracy.items() if arm != BASELINE}
    gains = {}
    if BASELINE in accuracy and len(accuracy[BASELINE]) > 1:
        # Differences of the others from the baseline: signs turned.
        gains = against([-x for x in accuracy[BASELINE]], {a: [-v for v in x] for a, x in others.items()})
    for arm, runs in of.items():
        metrics = [t["metrics"] for t in runs]
        names = ("nll", "ece", "auroc_tau", "auroc_weight", "auroc_loss", "tau_wrong", "tau_right")
        cells = [cell([m[n] for m in metrics], digits=2) if n in metrics[0] else "" for n in names]
        chosen = ", ".join(f"{k} {v:g}" for k, v in best[arm].items())
        lines.append(
            f"| {arm} | {chosen} | {cell(accuracy[arm])} | {gains.get(arm, '')} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--noise", nargs="+", type=float, default=[0.0, 0.2, 0.3, 0.4, 0.6], help="shares redrawn"
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="which to compare")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="of the test runs")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/noisy-labels"), help="folder of runs and tables"
    )
    options = parser.parse_args()
    for noise in options.noise:

        def job_of(arm: str, seed: int, chosen: dict[str, float], noise: float = noise) -> Job:
            return job(run, options.out / f"{noise:g}", arm, seed, chosen, noise=noise)

        trials = {arm: ARMS[arm].trials() for arm in options.arms}
        best, tests = tuned_and_tested(job_of, trials, options.seeds, options.workers)
        text = table(tests, best)
        (options.out / f"{noise:g}.json").write_text(json.dumps({"chosen": best, "tests": tests}, indent=1))
        (options.out / f"{noise:g}.md").write_text(text + "\n")
        print(f"{100 * noise:g} % of the labels redrawn\n\n{text}\n")


if __name__ == "__main__":
    main()
