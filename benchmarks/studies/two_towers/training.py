"""Training and evaluation of one method."""

import math
import time
from typing import Any

import torch
from glyphs.model import TextEncoder, as_float, image_encoder
from glyphs.retrieval import embed, mean_r1, recalls
from torch import Tensor

import dro_temp as dt
from benchmarks.studies.two_towers.data import Setting, captions, load
from benchmarks.studies.two_towers.methods import Method, Schedule
from benchmarks.studies.two_towers.zero_shot import script_accuracy
from dro_temp.evaluation import amortisation_gap


class Training:
    """A method on one data split.

    Args:
        method: how temperatures are chosen.
        setting: what all methods share.
        seed: of the data split, the model and the order of the pairs.
        options: of the trial.
        path: temperature of each step, in place of the method's own.
    """

    def __init__(
        self,
        method: Method,
        setting: Setting,
        seed: int,
        options: dict[str, float],
        path: list[float] | None = None,
    ) -> None:
        self.method, self.setting, self.options, self.path = method, setting, options, path
        self.data = load(setting.size, seed)
        self.train = self.data.splits["train"]
        self.names, self.wrong = captions(self.train, setting.noise, seed)
        self.per_epoch = setting.size // setting.batch
        self.steps = setting.epochs * self.per_epoch
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        host = dt.hosts.TwoTower(image_encoder(), TextEncoder(self.data.vocabulary))
        schedule = Schedule(setting.size, setting.epochs, self.per_epoch)
        self.objective = method.build(host, schedule, options)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The pairs with these indices."""
        return {
            "images": as_float(self.train.images[index]),
            "texts": self.train.tokens[self.names[index]],
            "index": index,
        }

    def batches(self) -> list[Tensor]:
        """Indices of the pairs of every step."""
        orders = [
            torch.randperm(self.setting.size, generator=self.generator) for _ in range(self.setting.epochs)
        ]
        of_epochs = (order[: self.per_epoch * self.setting.batch] for order in orders)
        return [batch for epoch in of_epochs for batch in epoch.view(self.per_epoch, -1)]

    def fit(self) -> list[float]:
        """Train; returns the mean temperature of each step."""
        total = self.steps
        groups = self.objective.param_groups(
            lr=self.options["lr"], tau_lr=self.method.tau_lr, weight_decay=0.02
        )
        for group in groups:
            if group["name"] == "temperature":
                group["betas"] = (0.9, self.method.tau_beta)
        optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(groups), self.objective)

        def cosine(step: int) -> float:
            return 0.5 * (1 + math.cos(math.pi * step / total))

        scheduler = (
            dt.hold_temperatures(
                optimizer,
                steps=round(self.method.hold * total),
                schedule=cosine,
                tau_schedule=lambda step: min(1.0, (total - step) / (0.3 * total)),
            )
            if self.method.hold
            else torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
        )
        taus: list[float] = []
        self.objective.train()
        batches = self.batches()
        self.objective.start_prototypes(**self.batch(torch.cat(batches[:2])))
        for step, index in enumerate(batches):
            self.set_temperature(step)
            output = self.objective(**self.batch(index))
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            scheduler.step()
            taus.append(sum(float(output.metrics[f"{v}/tau_mean"]) for v in self.objective.host.views) / 2)
        self.objective.eval()
        return taus

    def set_temperature(self, step: int) -> None:
        """Of a path, if one is given."""
        if self.path is not None:
            for predictor in self.objective.predictors.values():
                predictor.tau_min = predictor.tau_max = self.path[step]  # type: ignore[assignment]

    def recalls(self, split: str) -> dict[str, float]:
        """R@1 and R@5 in percent, both ways."""
        return recalls(self.objective.host, self.data.splits[split], split)

    def zero_shot(self) -> dict[str, float]:
        """Zero-shot accuracy in percent, on pairs of unseen names."""
        train, test = self.data.splits["train"], self.data.splits["test_unseen"]
        host = self.objective.host
        return script_accuracy(train, test, embed(host, train)["text"], embed(host, test)["image"])

    def gap(self) -> dict[str, Any]:
        """How close temperatures of training pairs come to the optimal ones, over the whole training set."""
        if not all(isinstance(loss, dt.KLRobustLoss) for loss in self.objective.losses.values()):
            return {}
        index = torch.arange(self.setting.size).split(500)
        batches = [self.batch(part) for part in index]
        gaps = amortisation_gap(self.objective, batches, rows=500, tau_min=0.02, tau_max=0.5, resamples=200)
        return {
            view: {
                "recovered": gap.recovered,
                "recovered_interval": gap.recovered_interval,
                "rank_correlation": gap.rank_correlation,
                "tau_mean": gap.tau.mean,
                "tau_std": gap.tau.std,
                "optimum_mean": gap.optimum.mean,
                "optimum_std": gap.optimum.std,
            }
            for view, gap in gaps.items()
        }


def trained(
    method: Method,
    setting: Setting,
    seed: int,
    options: dict[str, float],
    *,
    tuning: bool,
    path: list[float] | None = None,
) -> dict[str, Any]:
    """A run's result; a trial does not touch the test data."""
    return tested(Training(method, setting, seed, options, path), tuning=tuning)


def tested(training: Training, *, tuning: bool) -> dict[str, Any]:
    """The result of training and evaluating it; a trial does not touch the test data."""
    start = time.process_time()
    taus = training.fit()
    seconds = time.process_time() - start
    validation = training.recalls("val_seen") | training.recalls("val_unseen")
    result: dict[str, Any] = {
        "chosen_by": -mean_r1(validation),
        "metrics": validation,
        "seconds": seconds,
        "taus": [round(x, 5) for x in taus],
    }
    if not tuning:
        test = training.recalls("test_seen") | training.recalls("test_unseen")
        result["metrics"] |= test | {"mean_r1": mean_r1(test)} | training.zero_shot()
        result["gap"] = training.gap()
    return result
