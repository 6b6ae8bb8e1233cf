"""Training and evaluation of one method."""

import math
import time
from typing import Any

import torch
from glyphs.data import Pairs
from glyphs.model import as_float
from glyphs.retrieval import mean_r1, recalls
from torch import Tensor

from benchmarks.studies.mixed_sources.data import MARKS, Setting, mixture, noisy, with_mark
from benchmarks.studies.mixed_sources.methods import Facts, Method, TableTemperature
from benchmarks.studies.two_towers.training import Training

CLUSTERS = 64


class MixedTraining(Training):
    """A method on one division of mixed sources.

    Args:
        method: how temperatures and weights are chosen.
        setting: what all methods share.
        seed: of the division, the model and the order of the pairs.
        options: of the trial.
        path: temperature of each step, in place of the method's own.
        device: where everything is computed.
    """

    def __init__(
        self,
        method: Method,
        setting: Setting,
        seed: int,
        options: dict[str, float],
        path: list[float] | None = None,
        device: str = "cpu",
    ) -> None:
        self.method, self.setting, self.options, self.path = method, setting, options, path
        self.mixture, self.device = mixture(setting, seed), device
        self.images = self.mixture.images.to(device)
        tokens = self.mixture.data.splits["train"].tokens
        self.texts = tokens[self.mixture.names].to(device)
        self.per_epoch = setting.size // setting.batch
        self.steps = setting.epochs * self.per_epoch
        self.facts = Facts(self.steps, setting.width, self.mixture.noise, _cluster_sizes(self.texts.cpu()))
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        encoders = setting.encoders(self.mixture.data.vocabulary)
        self.objective = method.build(*encoders, self.facts, options).to(device)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        """The pairs with these numbers."""
        index = index.to(self.device)
        return {"images": as_float(self.images[index]), "texts": self.texts[index], "index": index}

    def batches(self) -> list[Tensor]:
        """The pairs' numbers of every step; without wrong pairs there are as many steps, of the others."""
        if not self.method.right_only:
            return super().batches()
        right, needed = (~self.mixture.wrong).nonzero()[:, 0], self.steps * self.setting.batch
        orders = [
            right[torch.randperm(len(right), generator=self.generator)]
            for _ in range(math.ceil(needed / len(right)))
        ]
        return list(torch.cat(orders)[:needed].view(self.steps, -1))

    def set_temperature(self, step: int) -> None:
        """Of a path, or of the method's schedule: for all pairs, or what it adds to their own."""
        given = None if self.path is None else self.path[step]
        if given is None and self.method.schedule is not None:
            given = self.method.schedule(step / self.steps, self.options)
        if given is None:
            return
        for predictor in self.objective.predictors.values():
            if isinstance(predictor, TableTemperature):
                predictor.shift = given
            else:
                predictor.tau_min = predictor.tau_max = given  # type: ignore[assignment]

    def recalls(self, part: str) -> dict[str, float]:
        """R@1 in percent of "val" or "test", with right captions: both ways, seen and unseen names, every mark."""
        marks = range(MARKS) if self.setting.marked else [MARKS - 1]
        found: dict[str, float] = {}
        for split in (f"{part}_seen", f"{part}_unseen"):
            for mark in marks:
                found |= self._r1(with_mark(self.mixture.data.splits[split], mark), f"{split}/mark{mark}")
        return found

    def noisy_recalls(self, seed: int) -> dict[str, float]:
        """The same of validation pairs with the marks and wrong captions of their sources."""
        splits = self.mixture.data.splits
        found: dict[str, float] = {}
        for split in ("val_seen", "val_unseen"):
            pairs = noisy(splits[split], self.setting, self.mixture.marks, seed)
            found |= self._r1(pairs, f"noisy_{split}")
        return found

    def _r1(self, pairs: Pairs, name: str) -> dict[str, float]:
        """R@1 of some pairs, both ways."""
        by_name = recalls(self.objective.host, pairs, name)  # type: ignore[arg-type]
        return {name: value for name, value in by_name.items() if name.endswith("_r1")}

    @torch.no_grad()
    def signals(self) -> dict[str, float]:
        """AUROC of loss, weight and temperature as detectors of wrong captions among the training pairs.

        Losses and weights are those of batches of the size of the training's, means over both views.
        """
        from sklearn.metrics import roc_auc_score

        n, wrong = self.setting.size, self.mixture.wrong
        if not wrong.any():
            return {}
        found = {name: torch.zeros(n) for name in ("loss", "weight", "tau")}
        for index in torch.randperm(n, generator=self.generator).split(self.setting.batch):
            output = self.objective(**self.batch(index))
            for view, values in output.values.items():
                found["loss"][index] += values.float().cpu() / 2
                found["tau"][index] += output.tau[view].float().cpu() / 2
                if view in self.objective.risks:
                    risk = self.objective.risks[view]
                    found["weight"][index] -= len(index) * risk.weights(values).float().cpu() / 2  # type: ignore[operator]
        kept = {name: x for name, x in found.items() if float(x.std()) > 1e-6}
        areas = {f"auroc_{name}": float(roc_auc_score(wrong.numpy(), x.numpy())) for name, x in kept.items()}
        by_source = {
            f"tau_source{k}": float(found["tau"][self.mixture.source == k].mean())
            for k in range(len(self.setting.noise))
        }
        return areas | by_source


def by_source(test: dict[str, float], setting: Setting, marks: tuple[int, ...]) -> dict[str, float]:
    """Mean R@1 of images with each source's mark."""
    if not setting.marked:
        return {}
    return {
        f"r1_source{k}": mean_r1({name: r for name, r in test.items() if f"/mark{mark}/" in name})
        for k, mark in enumerate(marks)
    }


def trained(
    method: Method,
    setting: Setting,
    seed: int,
    options: dict[str, float],
    *,
    tuning: bool,
    path: list[float] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """A run's result; a trial does not touch the test data."""
    start = time.process_time()
    training = MixedTraining(method, setting, seed, options, path, device)
    taus = training.fit()
    seconds = time.process_time() - start
    validation, noisy_validation = training.recalls("val"), training.noisy_recalls(seed)
    result: dict[str, Any] = {
        "chosen_by": -mean_r1(validation),
        "noisy_validation": mean_r1(noisy_validation),
        "seconds": seconds,
        "taus": [round(x, 5) for x in taus],
    }
    if not tuning:
        test = training.recalls("test")
        result["metrics"] = (
            test | {"mean_r1": mean_r1(test)} | by_source(test, setting, training.mixture.marks)
        )
        result["signals"] = training.signals()
    return result


def _cluster_sizes(tokens: Tensor) -> Tensor:
    """Size of the cluster of each caption, by k-means of their bags of words."""
    from sklearn.cluster import MiniBatchKMeans

    bags = torch.zeros(len(tokens), int(tokens.max()) + 1).scatter_add_(1, tokens, torch.ones(tokens.shape))
    bags[:, 0] = 0.0  # padding
    bags = torch.nn.functional.normalize(bags, dim=1)
    found = MiniBatchKMeans(CLUSTERS, n_init=1, random_state=0).fit_predict(bags.numpy())
    cluster = torch.from_numpy(found).long()
    return torch.bincount(cluster, minlength=CLUSTERS)[cluster]
