"""One run: a scheme with a seed, which can be stopped and resumed exactly."""

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dro_temp as dt

from .config import Options
from .data import augmentation, view
from .model import Encoder, build

PERSONAL = ("isogclr", "tempnet")  # schemes with a temperature per input


class Run:
    """The state of one training.

    Args:
        options: options of the example.
        seed: seed of weights, order and augmentation.
        images: training images, uint8 [n 32 32].
    """

    def __init__(self, options: Options, seed: int, images: Tensor) -> None:
        self.options, self.seed, self.images = options, seed, images
        torch.manual_seed(seed)
        self.augment, self.encoder, self.step = augmentation(), Encoder(options.backbone), 0
        self.objective = build(options, dt.hosts.TwoViews(self.encoder), len(images))
        # The images left over by full batches differ between epochs.
        self.steps = options.epochs * (len(images) // options.batch_size)
        groups = self.objective.param_groups(lr=options.lr, tau_lr=options.tau_lr, weight_decay=1e-4)
        self.optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(groups), self.objective)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / self.steps))
        )
        self.objective.start_prototypes(*self._views(self._batch(0)))  # only TempNet has any
        self.rng = torch.get_rng_state()

    def _batch(self, step: int) -> Tensor:
        """Numbers of the batch's images, a function of seed and step, so that a resumed run uses the same."""
        epoch, place = divmod(step, len(self.images) // self.options.batch_size)
        seed = random.Random(f"{self.seed} {epoch}").getrandbits(60)
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(seed))
        return order[place * self.options.batch_size :][: self.options.batch_size]

    def _views(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return view(self.images[index], self.augment), view(self.images[index], self.augment)

    def train_step(self) -> dict[str, float]:
        """Two new views of each image of the batch, and one optimizer step."""
        index = self._batch(self.step)
        output = self.objective(*self._views(index), index=index)
        self.optimizer.zero_grad()
        output.loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {name: float(output.metrics[name]) for name in ("loss", "first/tau_mean")}

    def fit(
        self,
        watch: Callable[[dict[str, float]], None] = lambda seen: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until the end or until `should_stop` returns True after a step; return True if finished."""
        torch.set_rng_state(self.rng)
        self.objective.train()
        while self.step < self.steps and not should_stop():
            watch(self.train_step())
        self.objective.eval()
        self.rng = torch.get_rng_state()
        return self.step == self.steps

    @torch.no_grad()
    def temperatures(self) -> dict[str, Tensor]:
        """Temperature of every training image, without augmentation, by view; empty for a constant."""
        predictors = self.objective.predictors
        if self.options.scheme == "isogclr":
            return {name: predictor.tau.clone() for name, predictor in predictors.items()}
        if self.options.scheme != "tempnet":
            return {}
        host = self.objective.host
        embedded = torch.cat([host.encode(part[:, None] / 255.0) for part in self.images.split(512)])
        return {name: predictor(embedded) for name, predictor in predictors.items()}

    def save(self, folder: Path) -> None:
        """Write the checkpoint atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = {name: getattr(self, name).state_dict() for name in _PARTS}
        unfinished = self._file(folder).with_suffix(".partial")
        torch.save(
            {"options": self.options.of_a_run(), "step": self.step, "rng": self.rng, **parts}, unfinished
        )
        os.replace(unfinished, self._file(folder))

    def restore(self, folder: Path) -> None:
        """Resume from the checkpoint, if there is one.

        Raises:
            ValueError: it was made with other options.
        """
        if not self._file(folder).exists():
            return
        state: dict[str, Any] = torch.load(self._file(folder), weights_only=True)
        was, now = state["options"], self.options.of_a_run()
        if was != now:
            other = [name for name in now if was.get(name) != now[name]]
            typed = [" ".join(f"--{n.replace('_', '-')} {o.get(n)}" for n in other) for o in (was, now)]
            raise ValueError(
                f"expected the checkpoint's options, {typed[0]}, received {typed[1]}. Type {typed[0]} --resume, or "
                "leave out --resume to start over."
            )
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.step, self.rng = state["step"], state["rng"]

    def _file(self, folder: Path) -> Path:
        return folder / f"{self.options.scheme}-seed{self.seed}.pt"


_PARTS = ("objective", "optimizer", "scheduler")
