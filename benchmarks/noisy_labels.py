"""Wrong labels: which loss learns in spite of them, and what tells that a label is wrong? Handwritten digits.

scikit-learn's 1,797 digits: 900 to train on, a share of their labels redrawn, 300 with right labels to choose options
on, 597 to test on. Every arm has four trials (two learning rates, two values of what matters most to it) at a seed that
is not tested; the one of the best validation accuracy is trained with five others (divisions, noise, networks).
What tells wrong labels is measured among the training labels: AUROC of the temperature, of how little a sample weighs,
and of its loss.

  python benchmarks/noisy_labels.py                       (needs scikit-learn; some 25 minutes on two threads)
  python benchmarks/noisy_labels.py --noise 0.3 --arms cross-entropy tilted

Stopped with Ctrl-C, it goes on where it was. Losses other than ours are plain PyTorch.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness.study import cell
from reproduction.paired import against
from reproduction.study import Job, job, tuned_and_tested

import dro_temp as dt
from dro_temp.evaluation import expected_calibration_error

CLASSES, WIDTH, TRAIN, VALIDATION, BATCH, EPOCHS = 10, 64, 900, 300, 64, 40
BOUNDS, RATES, BASELINE = {"tau_min": 0.1, "tau_max": 20.0}, (1e-3, 3e-3), "label smoothing"
#: Losses of samples [n], from logits and labels, with the arm's option.
SampleLoss = Callable[[Tensor, Tensor, float], Tensor]


def _entropy(logits: Tensor, labels: Tensor, _: float = 0.0) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _generalised(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """(1 - p_y^q) / q, arXiv 1805.07836."""
    return -torch.expm1(-q * _entropy(logits, labels)) / q


def _focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """(1 - p_y)^gamma (-log p_y), arXiv 1708.02002."""
    entropy = _entropy(logits, labels)
    return (-torch.expm1(-entropy)).pow(gamma) * entropy


def _net(option: float) -> dt.TemperaturePredictor:
    encoder = dt.SeveralEncoder([dt.HiddenEncoder(WIDTH), dt.StatisticsEncoder()])
    return dt.TempNet(encoder, tau_init=1.0, readout=dt.ResidualReadout, **BOUNDS)


@dataclass(frozen=True)
class Arm:
    """A way to learn.

    Args:
        tuned: the option that is tuned beside the learning rate, and its values.
        sample_loss: of each sample, where the objective is the risk of it.
        risk: from the losses of samples to one number; the mean if None.
        predictor: of temperatures, where the objective is a loss of rows.
        loss: of rows.
        smoothing: True if the option is that of the labels.
        decay: True if the option is the weight decay.
    """

    tuned: tuple[str, tuple[float, float]]
    sample_loss: SampleLoss = _entropy
    risk: Callable[[float], dt.SampleRisk] | None = None
    predictor: Callable[[float], dt.TemperaturePredictor] | None = None
    loss: Callable[[float], dt.RobustLoss] = lambda _: dt.LikelihoodLoss()
    smoothing: bool = False
    decay: bool = False

    def trials(self) -> list[dict[str, float]]:
        """Options of each trial."""
        return [{"lr": lr, self.tuned[0]: value} for lr, value in itertools.product(RATES, self.tuned[1])]


def _one(_: float) -> dt.TemperaturePredictor:
    return dt.ConstantTemperature(1.0)


ARMS = {
    "cross-entropy": Arm(("decay", (0.01, 0.3)), decay=True),
    "label smoothing": Arm(("smoothing", (0.1, 0.3)), predictor=_one, smoothing=True),
    "generalised cross-entropy": Arm(("q", (0.5, 0.9)), _generalised),
    "focal": Arm(("gamma", (0.5, 2.0)), _focal),
    "tilted, t < 0": Arm(("tilt", (-2.0, -1.0)), risk=dt.TiltedRisk),
    "least losses": Arm(("share", (0.6, 0.8)), risk=lambda o: dt.OptimisticRisk(dt.CVaRRisk(o))),
    "best case in a KL ball": Arm(("rho", (0.2, 0.5)), risk=lambda o: dt.OptimisticRisk(dt.KLRisk(o))),
    "robust, constant": Arm(
        ("tau", (1.0, 4.0)), predictor=dt.ConstantTemperature, loss=lambda _: dt.KLRobustLoss(0.5)
    ),
    "robust, TempNet": Arm(("rho", (0.5, 1.0)), predictor=_net, loss=dt.KLRobustLoss),
    "robust, optimal": Arm(
        ("rho", (0.5, 1.0)), predictor=lambda o: dt.OptimalTemperature(o, **BOUNDS), loss=dt.KLRobustLoss
    ),
    "likelihood, one for each sample": Arm(
        ("tau_lr", (0.03, 0.3)),
        predictor=lambda _: dt.IndividualTemperature(TRAIN, tau_init=1.0, update=None, **BOUNDS),
    ),
}


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
    body = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.GELU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, WIDTH), nn.GELU(),
    )  # fmt: skip
    return dt.hosts.Classifier(body, nn.Linear(WIDTH, CLASSES), label_smoothing=smoothing)


def run(name: str, seed: int, options: dict[str, float], *, tuning: bool, noise: float) -> dict[str, Any]:
    """One run, in whatever process."""
    arm, option = ARMS[name], options[ARMS[name].tuned[0]]
    splits, right = data(noise, seed)
    (images, given), torch_seed = splits["train"], torch.manual_seed(seed)
    objective = dt.Objective(
        host_of(option if arm.smoothing else 0.0),
        (arm.predictor or _one)(option),
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
        losses = _entropy(rows.dense_scores, given)
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
