"""One run: train a method, test it, and measure which of its signals identify wrong labels."""

import math
from typing import Any

import torch
from torch import Tensor

import dro_temp as dt
from benchmarks.studies.wrong_labels.data import PROBLEMS, WIDTH, Problem, Split, Splits
from benchmarks.studies.wrong_labels.methods import IMBALANCE_METHODS, METHODS, Method, sample_entropy
from dro_temp.evaluation import ClassifierReport, evaluate_classifier

BATCH = 64
SCHEMES = {"one": "tau = 1", "constant": "best constant", "own": "predictor"}


def run(
    name: str, seed: int, options: dict[str, float], *, tuning: bool, data: str, noise: float
) -> dict[str, Any]:
    """Train a method; trials are compared by validation accuracy and do not touch the test images."""
    problem, method = PROBLEMS[data], (METHODS | IMBALANCE_METHODS)[name]
    splits = problem.splits(noise, seed)
    if method.right_labels:
        splits = splits.right_alone()
    torch.manual_seed(seed)
    objective, risk = _built(problem, method, options[method.tuned[0]], len(splits.right))
    _train(objective, risk, method, options, splits.train, problem.epochs)
    objective.eval()
    result: dict[str, Any] = {"chosen_by": -_accuracy(objective, splits.validation)}
    if not tuning:
        result["metrics"] = _tested(objective, method, splits) | _wrong_label_signals(
            objective, risk, method, options, splits
        )
    return result


def _built(
    problem: Problem, method: Method, option: float, samples: int
) -> tuple[dt.Objective, dt.interfaces.SampleRisk]:
    host = dt.hosts.Classifier(
        problem.body(),
        torch.nn.Linear(WIDTH, problem.classes),
        label_smoothing=option if method.smoothing else 0.0,
    )
    predictor = method.predictor(option, samples) if method.predictor else dt.ConstantTemperature(1.0)
    risk = method.risk(option, problem.classes) if method.risk else dt.risks.MeanRisk()
    return dt.Objective(host, predictor, method.loss(option), monitor=False), risk


def _train(
    objective: dt.Objective,
    risk: dt.interfaces.SampleRisk,
    method: Method,
    options: dict[str, float],
    data: Split,
    epochs: int,
) -> None:
    images, labels = data
    option = options[method.tuned[0]]
    groups = objective.param_groups(
        lr=options["lr"], tau_lr=options.get("tau_lr", 3e-3), weight_decay=option if method.decay else 0.01
    )
    optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(groups), risk if method.risk else objective)
    batches = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / (epochs * batches)))
    )
    for epoch in range(epochs):
        if method.rising:
            assert isinstance(risk, dt.OptimisticRisk)
            risk.risk.rho = option * epoch / max(1, epochs - 1)
        for index in torch.randperm(len(labels))[: batches * BATCH].split(BATCH):
            if method.predictor is None:
                logits = objective.host(images[index], labels[index])["class"].dense_scores
                losses = method.sample_loss(logits, labels[index], option)
                loss = risk(losses, group=_groups(risk, labels[index]))
            else:
                loss = objective(images[index], labels[index], index=index).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def _groups(risk: dt.interfaces.SampleRisk, labels: Tensor) -> Tensor | None:
    """The classes, for a risk that needs groups."""
    return labels if risk.needs_groups else None


@torch.no_grad()
def _accuracy(objective: dt.Objective, split: Split) -> float:
    """Accuracy in percent."""
    rows = objective.host(*split)["class"]
    return 100 * float((rows.dense_scores.argmax(1) == rows.target).double().mean())


def _tested(objective: dt.Objective, method: Method, splits: Splits) -> dict[str, float]:
    """Accuracies, and the quality of the probabilities at each choice of temperatures."""
    own = objective.predictors["class"]
    # Temperatures of training samples, looked up by index, do not apply to test images.
    own = None if method.predictor is None or "index" in own.reads else own
    report = evaluate_classifier(
        objective.host, [splits.test], validation=[splits.validation], predictors=own
    )
    return {"accuracy": report.accuracy, "balanced": report.balanced_accuracy} | _probabilities(report)


def _probabilities(report: ClassifierReport) -> dict[str, float]:
    schemes = {scheme.name: scheme for scheme in report.schemes}
    used = {short: schemes[name] for short, name in SCHEMES.items() if name in schemes}
    return {f"nll_{short}": s.nll for short, s in used.items()} | {
        f"ece_{short}": 100 * s.ece for short, s in used.items()
    }


@torch.no_grad()
def _wrong_label_signals(
    objective: dt.Objective,
    risk: dt.interfaces.SampleRisk,
    method: Method,
    options: dict[str, float],
    splits: Splits,
) -> dict[str, float]:
    """AUROC of temperature, weight and loss as detectors of wrong labels among the training samples."""
    from sklearn.metrics import roc_auc_score

    images, labels = splits.train
    wrong = labels != splits.right
    if not wrong.any():
        return {}
    rows = objective.host(images, labels, torch.arange(len(labels)))["class"]
    signals = {"loss": sample_entropy(rows.dense_scores, labels)}
    more: dict[str, float] = {}
    if method.risk:
        losses = method.sample_loss(rows.dense_scores, labels, options[method.tuned[0]])
        weight = risk.weights(losses, group=_groups(risk, labels))
        signals["weight"] = -weight  # a small weight indicates a wrong label
        more["weight_of_wrong"] = 100 * float(weight[wrong].sum())
    elif objective.predictors["class"].reads:  # a single temperature separates nothing
        tau = objective.predictors["class"].predict(rows)
        signals["tau"] = tau
        more |= {"tau_wrong": float(tau[wrong].mean()), "tau_right": float(tau[~wrong].mean())}
    auroc = {f"auroc_{name}": float(roc_auc_score(wrong.numpy(), x.numpy())) for name, x in signals.items()}
    return {"share_wrong": 100 * float(wrong.double().mean())} | auroc | more
