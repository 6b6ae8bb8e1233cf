"""One run: a method with a seed, which can be stopped and resumed exactly."""

import math
import random
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import dro_temp as dt
from dro_temp.evaluation import amortisation_gap

from .config import Config, Method
from .data import Data, Pairs
from .model import WIDTH, TextEncoder, as_float, image_encoder
from .retrieval import embed, mean_r1, recalls

VIEWS = dt.hosts.TwoTower.views
GAP_PAIRS = 2_000  # sampled for the amortisation gap


_PROGRESS = ("epoch", "step", "sums", "history", "seconds", "result", "rng")


class Watcher(Protocol):
    """Callbacks of a run."""

    def step(self, seen: dict[str, float]) -> None:
        """Called after each step."""

    def epoch(self) -> None:
        """Called after each epoch and its validation."""


def build_objective(method: Method, config: Config, vocabulary: int) -> dt.Objective:
    """Host, predictors and losses; the methods differ in nothing else."""
    host = dt.hosts.TwoTower(image_encoder(), TextEncoder(vocabulary))
    bounds = {"tau_min": config.tau_min, "tau_max": config.tau_max}
    if method == "infonce":
        return dt.Objective(host, dt.LearnableTemperature(config.tau_init, **bounds), dt.InfoNCELoss())
    if method == "infonce-constant":
        return dt.Objective(host, dt.ConstantTemperature(config.tau_init), dt.InfoNCELoss())
    predictors: dict[str, Callable[[], dt.TemperaturePredictor]] = {
        "tempnet": lambda: dt.TempNet(
            dt.predictors.HiddenEncoder(WIDTH),
            tau_init=config.tau_init,
            readout=dt.predictors.ResidualReadout,
            **bounds,
        ),
        "tempnet-paper": lambda: dt.TempNet(WIDTH, tau_init=config.tau_init, **bounds),
        "constant": lambda: dt.ConstantTemperature(config.tau_init),
        "learnable": lambda: dt.LearnableTemperature(config.tau_init, **bounds),
        "individual": lambda: dt.IndividualTemperature(config.train_size, tau_init=config.tau_init, **bounds),
    }
    loss = {
        view: dt.KLRobustLoss(
            config.rho, estimator=dt.LogMovingAverage(config.train_size, gamma=config.gamma)
        )
        for view in VIEWS
    }
    predictor = {view: predictors[method]() for view in VIEWS}
    if method != "tempnet":
        return dt.Objective(host, predictor, loss)
    # A batch has too few outcomes to determine a row's best temperature, and too few rows for the network: ours is
    # trained on a queue of keys, and on earlier rows.
    replay = min(config.replay, config.queue)
    queue = {
        view: dt.QueuedLoss(dt.KLRobustLoss(config.rho), size=config.queue, features=WIDTH, replay=replay)
        for view in VIEWS
    }
    return dt.Objective(host, predictor, loss, tau_loss=queue)


def build_scheduler(method: Method, config: Config, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """A cosine to zero; temperatures of `tempnet` are held first, and their rate decays only in the last third."""
    total = config.epochs * config.steps_per_epoch

    def cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / total))

    if method != "tempnet" or config.hold == 0:
        return LambdaLR(optimizer, cosine)
    return dt.hold_temperatures(
        optimizer,
        steps=max(1, round(config.hold * total)),
        schedule=cosine,
        tau_schedule=lambda step: min(1.0, 3 * (total - step) / total),
    )


class Run:
    """The state of one training, which its checkpoint stores."""

    def __init__(self, method: Method, seed: int, config: Config, data: Data) -> None:
        self.method, self.seed, self.config, self.data = method, seed, config, data
        self.train = data.splits["train"]
        torch.manual_seed(seed)
        self.objective = build_objective(method, config, data.vocabulary)
        groups = self.objective.param_groups(lr=config.lr, tau_lr=config.tau_lr, weight_decay=0.02)
        self.optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(groups), self.objective)
        self.scheduler = build_scheduler(method, config, self.optimizer)
        self.epoch = self.step = 0  # finished epochs; finished steps of the current epoch
        self.sums: dict[str, float] = {}  # losses of those steps
        self.history: dict[str, list[float]] = {}
        self.seconds = 0.0
        self.result: dict[str, Any] | None = None
        # Prototypes of one side start as embeddings of the other; only TempNet has any.
        self.objective.start_prototypes(*self._batch(self._order()[: 2 * config.batch_size]))
        self.rng = torch.get_rng_state()  # TempNet's dropout draws from it; each run has its own stream

    @property
    def options(self) -> dict[str, Any]:
        """The options that determine the result."""
        return {"method": self.method, "seed": self.seed, **self.config.of_a_run()}

    def _order(self) -> Tensor:
        # A function of seed and epoch, not of what was drawn before: a resumed epoch has the same order.
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {self.epoch}").getrandbits(60))
        return torch.randperm(len(self.train), generator=generator)

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return as_float(self.train.images[index]), self.train.tokens[self.train.name_index[index]]

    def train_step(self, index: Tensor) -> dict[str, float]:
        """One optimizer step on the pairs with these numbers."""
        output = self.objective(*self._batch(index), index=index)
        self.optimizer.zero_grad()
        output.loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        seen = {"loss": float(output.metrics["loss"])} | {
            f"tau_{view}": float(output.metrics[f"{view}/tau_mean"]) for view in VIEWS
        }
        self.step += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in seen.items()}
        return seen

    def fit(
        self,
        *,
        save: Callable[["Run"], None],
        should_stop: Callable[[], bool] = lambda: False,
        watch: Watcher | None = None,
    ) -> None:
        """Train to the end and test; save after each epoch, and before stopping early.

        Raises:
            KeyboardInterrupt: `should_stop` returned True; the checkpoint was saved.
        """
        steps, batch = self.config.steps_per_epoch, self.config.batch_size
        torch.set_rng_state(self.rng)
        began = time.perf_counter() - self.seconds
        while self.result is None:
            if self.epoch < self.config.epochs:
                self.objective.train()
                batches = self._order()[: steps * batch].view(steps, batch)
                for index in batches[self.step :]:
                    seen = self.train_step(index)
                    if watch is not None:
                        watch.step(seen)
                    if should_stop():
                        break
                if self.step == steps:
                    self._finish_epoch()
                    if watch is not None:
                        watch.epoch()
            else:
                self.result = self._test()
            self.seconds, self.rng = time.perf_counter() - began, torch.get_rng_state()
            save(self)
            if self.result is None and should_stop():
                raise KeyboardInterrupt

    def _finish_epoch(self) -> None:
        seen = {name: total / self.step for name, total in self.sums.items()}
        recalls = {k: v for split in ("val_seen", "val_unseen") for k, v in self.recalls(split).items()}
        seen["val_r1"] = mean_r1(recalls)
        for name, value in seen.items():
            self.history.setdefault(name, []).append(value)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}

    def embed(self, pairs: Pairs) -> dict[str, Tensor]:
        """Unit vectors of the images, and of the names."""
        self.objective.eval()
        return embed(self.objective.host, pairs)

    def recalls(self, split: str) -> dict[str, float]:
        """R@1 and R@5 in percent, both ways."""
        self.objective.eval()
        return recalls(self.objective.host, self.data.splits[split], split)

    @torch.no_grad()
    def temperatures(self, split: str) -> dict[str, Tensor]:
        """Temperature of every image and of every name; a table of temperatures has those of training pairs only."""
        predictors = self.objective.predictors
        if self.method == "individual":
            return {view: predictors[view].tau.clone() for view in VIEWS}
        return {view: predictors[view](x) for view, x in self.embed(self.data.splits[split]).items()}

    def _test(self) -> dict[str, Any]:
        recalls = self.recalls("test_seen") | self.recalls("test_unseen")
        tau = self.temperatures("test_seen")
        spread = {
            f"tau_{view}_{name}": float(value)
            for view, x in tau.items()
            for name, value in (("mean", x.mean()), ("std", x.std(correction=0)))
        }
        metrics = recalls | {"mean_r1": mean_r1(recalls)} | spread
        return {"metrics": metrics, "tau": tau, "gap_recovered": self.gap_recovered()}

    def gap_recovered(self) -> dict[str, tuple[float, float, float]]:
        """Share of the attainable gain recovered, and its 95 % interval, by view.

        Over the training pairs, in the robust loss; empty for methods trained with another loss.
        """
        if not all(isinstance(loss, dt.KLRobustLoss) for loss in self.objective.losses.values()):
            return {}
        batches = [(*self._batch(index), index) for index in torch.arange(len(self.train)).split(512)]
        # A constant has no bounds; all methods are compared within the same ones.
        bounds = {"tau_min": self.config.tau_min, "tau_max": self.config.tau_max}
        gaps = amortisation_gap(self.objective, batches, rows=GAP_PAIRS, seed=self.seed, **bounds)
        return {view: (gap.recovered, *gap.recovered_interval) for view, gap in gaps.items()}

    def state_dict(self) -> dict[str, Any]:
        """State of the run. The estimators' memory is part of the objective's state."""
        return {
            "run": self.options,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            **{name: getattr(self, name) for name in _PROGRESS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where that state was taken."""
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for name in _PROGRESS:
            setattr(self, name, state[name])
