"""One run: train an arm, measure it, and see what tells wrong labels."""

import math
from typing import Any

import torch
from torch import Tensor

import dro_temp as dt
from dro_temp.evaluation import ClassifierReport, evaluate_classifier
from wrong_labels.arms import ARMS, IMBALANCE_ARMS, Arm, sample_entropy
from wrong_labels.data import PROBLEMS, WIDTH, Problem, Split, Splits

BATCH = 64
SCHEMES = {"one": "tau = 1", "constant": "best constant", "own": "predictor"}


def run(
    name: str, seed: int, options: dict[str, float], *, tuning: bool, data: str, noise: float
) -> dict[str, Any]:
    """Train an arm; trials are compared by accuracy on right labels, and only what is no trial is tested."""
    problem, arm = PROBLEMS[data], (ARMS | IMBALANCE_ARMS)[name]
    splits = problem.splits(noise, seed)
    if arm.right_labels:
        splits = splits.right_alone()
    torch.manual_seed(seed)
    objective, risk = _built(problem, arm, options[arm.tuned[0]], len(splits.right))
    _train(objective, risk, arm, options, splits.train, problem.epochs)
    objective.eval()
    result: dict[str, Any] = {"chosen_by": -_accuracy(objective, splits.validation)}
    if not tuning:
        result["metrics"] = _tested(objective, arm, splits) | _told(objective, risk, arm, options, splits)
    return result


def _built(
    problem: Problem, arm: Arm, option: float, samples: int
) -> tuple[dt.Objective, dt.interfaces.SampleRisk]:
    host = dt.hosts.Classifier(
        problem.body(),
        torch.nn.Linear(WIDTH, problem.classes),
        label_smoothing=option if arm.smoothing else 0.0,
    )
    predictor = arm.predictor(option, samples) if arm.predictor else dt.ConstantTemperature(1.0)
    risk = arm.risk(option, problem.classes) if arm.risk else dt.risks.MeanRisk()
    return dt.Objective(host, predictor, arm.loss(option), monitor=False), risk


def _train(
    objective: dt.Objective,
    risk: dt.interfaces.SampleRisk,
    arm: Arm,
    options: dict[str, float],
    data: Split,
    epochs: int,
) -> None:
    images, given = data
    option = options[arm.tuned[0]]
    groups = objective.param_groups(
        lr=options["lr"], tau_lr=options.get("tau_lr", 3e-3), weight_decay=option if arm.decay else 0.01
    )
    optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(groups), risk if arm.risk else objective)
    batches = len(given) // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / (epochs * batches)))
    )
    for epoch in range(epochs):
        if arm.rising:
            assert isinstance(risk, dt.OptimisticRisk)
            risk.risk.rho = option * epoch / max(1, epochs - 1)
        for index in torch.randperm(len(given))[: batches * BATCH].split(BATCH):
            if arm.predictor is None:
                logits = objective.host(images[index], given[index])["class"].dense_scores
                losses = arm.sample_loss(logits, given[index], option)
                loss = risk(losses, group=_groups(risk, given[index]))
            else:
                loss = objective(images[index], given[index], index=index).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def _groups(risk: dt.interfaces.SampleRisk, given: Tensor) -> Tensor | None:
    """The classes."""
    return given if risk.needs_groups else None


@torch.no_grad()
def _accuracy(objective: dt.Objective, split: Split) -> float:
    """In percent; a trial needs no more."""
    rows = objective.host(*split)["class"]
    return 100 * float((rows.dense_scores.argmax(1) == rows.target).double().mean())


def _tested(objective: dt.Objective, arm: Arm, splits: Splits) -> dict[str, float]:
    """Accuracies, and how good the probabilities are at each way to choose temperatures."""
    own = objective.predictors["class"]
    # What was learned for training samples by their number says nothing of other images.
    own = None if arm.predictor is None or "index" in own.reads else own
    report = evaluate_classifier(
        objective.host, [splits.test], validation=[splits.validation], predictors=own
    )
    return {"accuracy": report.accuracy, "balanced": report.balanced_accuracy} | _probabilities(report)


def _probabilities(report: ClassifierReport) -> dict[str, float]:
    schemes = {scheme.name: scheme for scheme in report.schemes}
    found = {short: schemes[name] for short, name in SCHEMES.items() if name in schemes}
    return {f"nll_{short}": s.nll for short, s in found.items()} | {
        f"ece_{short}": 100 * s.ece for short, s in found.items()
    }


@torch.no_grad()
def _told(
    objective: dt.Objective,
    risk: dt.interfaces.SampleRisk,
    arm: Arm,
    options: dict[str, float],
    splits: Splits,
) -> dict[str, float]:
    """How well wrong labels are told among the training samples: by temperature, by weight, by loss (AUROC)."""
    from sklearn.metrics import roc_auc_score

    images, given = splits.train
    wrong = given != splits.right
    if not wrong.any():
        return {}
    rows = objective.host(images, given, torch.arange(len(given)))["class"]
    signals = {"loss": sample_entropy(rows.dense_scores, given)}
    more: dict[str, float] = {}
    if arm.risk:
        losses = arm.sample_loss(rows.dense_scores, given, options[arm.tuned[0]])
        weight = risk.weights(losses, group=_groups(risk, given))
        signals["weight"] = -weight  # what weighs little is wrong
        more["weight_of_wrong"] = 100 * float(weight[wrong].sum())
    elif objective.predictors["class"].reads:  # one temperature for all tells nothing
        tau = objective.predictors["class"].predict(rows)
        signals["tau"] = tau
        more |= {"tau_wrong": float(tau[wrong].mean()), "tau_right": float(tau[~wrong].mean())}
    auroc = {f"auroc_{name}": float(roc_auc_score(wrong.numpy(), x.numpy())) for name, x in signals.items()}
    return {"share_wrong": 100 * float(wrong.double().mean())} | auroc | more
