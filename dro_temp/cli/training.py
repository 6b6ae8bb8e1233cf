"""The training loop of `clip fit` and `vision fit`, on accelerate: killed at any step, it goes on bit for bit."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from dro_temp._checks import check_count, check_not_negative, check_positive
from dro_temp._files import whole_file
from dro_temp.cli import checkpoints
from dro_temp.cli.checkpoints import Checkpoint
from dro_temp.cli.loader import Epochs
from dro_temp.cli.messages import require, say
from dro_temp.cli.options import check_seed
from dro_temp.cli.run import Run
from dro_temp.cli.trackers import Tracker, trackers
from dro_temp.objective import Objective
from dro_temp.optim import CompositionalOptimizer, hold_temperatures

Precision: TypeAlias = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class Settings:
    """Options of a training that do not depend on what is trained; for their meaning see `clip fit`."""

    epochs: int
    batch: int
    lr: float
    tau_lr: float
    weight_decay: float
    clip: float
    warmup: int
    save_every: int
    precision: Precision
    compile: bool
    workers: int
    seed: int
    log: tuple[Tracker, ...]
    hold: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """Those among the options of a command, checked in its words."""
        for name, least in (("epochs", 1), ("batch", 2), ("save_every", 1), ("warmup", 0), ("workers", 0)):
            check_count(f"--{name}", options[name], minimum=least)
        check_positive("--lr", options["lr"])
        for name in ("tau_lr", "weight_decay", "clip"):
            check_not_negative(f"--{name}", options[name])
        check_seed(options["seed"])
        if options["precision"] == "fp16" and not torch.cuda.is_available():
            raise ValueError(
                "expected a CUDA device with --precision fp16, received none. Pass --precision bf16, or no."
            )
        hold = options["hold"]
        if hold is not None and not 0 <= hold < 1:
            raise ValueError(
                f"expected --hold from 0 to below 1, received --hold {hold}. Pass --hold 0.3, the share of the steps "
                "in which temperatures stay where they start."
            )
        found = {f.name: options[f.name] for f in fields(cls)}
        return cls(**found | {"log": tuple(options["log"]), "hold": hold or 0.0})


@dataclass(frozen=True)
class Validation:
    """What a validation measured.

    Args:
        metrics: numbers by name.
        score: by which the best epoch is chosen, higher is better; what comes later decides between equals.
        tau: temperatures by view; empty where those of validation samples do not exist.
    """

    metrics: dict[str, float]
    score: tuple[float, ...]
    tau: dict[str, Tensor] = field(default_factory=dict)


class Progress:
    """Where a training is, and what its validations found: part of each checkpoint."""

    def __init__(self) -> None:
        self.step = 0
        self.best: tuple[float, ...] | None = None
        self.best_epoch: int | None = None
        self.epochs: list[dict[str, float]] = []
        self.tau: list[dict[str, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state)


@dataclass(frozen=True)
class Engine:
    """accelerate, and how its trackers go on with a run."""

    accelerator: Any
    tracker_options: dict[str, Any]


@contextmanager
def engine(settings: Settings, run: Run, start: Checkpoint) -> Iterator[Engine]:
    """Accelerate with the trackers of a run; the group of processes exists inside.

    In the end trackers are closed, and another training may begin in this process.
    """
    log, options = trackers(settings.log, run.folder, start.step)
    accelerator = require("accelerate").Accelerator(
        mixed_precision=settings.precision,
        log_with=log or None,
        project_dir=str(run.folder / "logs"),
        dynamo_backend="inductor" if settings.compile else None,
        # Without a device accelerate overlooks that a launcher started several processes, unless it is told.
        cpu=not torch.accelerator.is_available(),
    )
    try:
        yield Engine(accelerator, options)
        accelerator.end_training()
    finally:
        state = require("accelerate.state")
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


class Training:
    """One training.

    Args:
        run: the folder that it writes checkpoints to.
        settings: its options.
        engine: accelerate.
        objective: what is trained.
        data: its batches.
        validate: measures the objective after each epoch, on the first process; None where nothing is held out.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        engine: Engine,
        objective: Objective,
        data: Epochs,
        validate: Callable[[Objective], Validation] | None,
    ) -> None:
        self.run, self.settings, self.engine = run, settings, engine
        accelerator = self.accelerator = engine.accelerator
        self.objective, self.data, self.validate = objective, data, validate
        self.progress = Progress()
        self.total = settings.epochs * data.steps
        groups = objective.param_groups(
            lr=settings.lr,
            tau_lr=settings.tau_lr,
            host=_decayed(objective, settings.weight_decay),
        )
        # As open_clip trains CLIP.
        base = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
        compositional = CompositionalOptimizer(base, objective)
        self.scheduler = self._scheduler(compositional)
        self.model, self.optimizer = accelerator.prepare(objective, compositional)
        # Not prepared: accelerate would step it once for each process.
        accelerator.register_for_checkpointing(self.scheduler, self.progress)

    def _scheduler(self, optimizer: CompositionalOptimizer) -> LambdaLR:
        """Warm up, then a cosine to zero; temperatures are held first, and their rate falls in the last third."""
        warmup, total = self.settings.warmup, self.total

        def rate(step: int) -> float:
            rising = min(1.0, (step + 1) / (warmup + 1))
            return (
                rising
                * 0.5
                * (1 + math.cos(math.pi * min(1.0, max(0, step - warmup) / max(1, total - warmup))))
            )

        learned = any(group["name"] == "temperature" for group in optimizer.param_groups)
        if not (learned and self.settings.hold):
            return LambdaLR(optimizer, rate)
        return hold_temperatures(
            optimizer,
            steps=max(1, round(self.settings.hold * total)),
            schedule=rate,
            tau_schedule=lambda step: min(1.0, 3 * max(0, total - step) / total),
        )

    @property
    def best(self) -> Path:
        """The objective's state after the best epoch."""
        return self.run.folder / "best.pt"

    def fit(self, start: Checkpoint) -> bool:
        """Train from the checkpoint to the end, back to the best epoch; whether this process writes the result."""
        require("accelerate.utils").set_seed(self.settings.seed, device_specific=True)
        main = bool(self.accelerator.is_main_process)
        if start.folder is not None:
            self.accelerator.load_state(str(start.folder))
        if main:
            checkpoints.forget_after(self.run.checkpoints, self.progress.step)
        self.accelerator.init_trackers(self.run.command, init_kwargs=self.engine.tracker_options)
        with _bar(self.total, self.progress.step, main) as advance:
            for epoch in range(self.progress.step // self.data.steps, self.settings.epochs):
                self._epoch(epoch, advance)
        if main and self.progress.best is not None:
            self.objective.load_state_dict(torch.load(self.best, weights_only=True, map_location="cpu"))
        return main

    def _epoch(self, epoch: int, advance: Callable[..., None]) -> None:
        accelerator, progress, steps = self.accelerator, self.progress, self.data.steps
        self.model.train()
        parameters = list(self.objective.parameters())
        for batch in self.data.batches(epoch, progress.step - epoch * steps):
            *inputs, index = (part.to(accelerator.device, non_blocking=True) for part in batch)
            output = self.model(*inputs, index=index)
            accelerator.backward(output.loss)
            if self.settings.clip:
                accelerator.clip_grad_norm_(parameters, self.settings.clip)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            progress.step += 1
            if progress.step % max(1, self.total // 200) == 0 or progress.step == epoch * steps + 1:
                values = {name: float(value) for name, value in output.metrics.items()}
                rates = {f"lr/{group['name']}": float(group["lr"]) for group in self.optimizer.param_groups}
                accelerator.log(values | rates, step=progress.step)
                advance(loss=f"{values['loss']:.4g}")
            advance(completed=progress.step)
            if progress.step % self.settings.save_every == 0 and progress.step < (epoch + 1) * steps:
                self._save()
        self._validated(epoch)
        self._save()

    def _validated(self, epoch: int) -> None:
        accelerator, progress = self.accelerator, self.progress
        if self.validate is None or not accelerator.is_main_process:
            return
        with accelerator.autocast():
            found = self.validate(self.objective.eval())
        self.objective.train()
        progress.epochs.append({"epoch": epoch + 1, "step": progress.step, **found.metrics})
        progress.tau.append({view: tau.half() for view, tau in found.tau.items()})
        accelerator.log({f"val/{name}": value for name, value in found.metrics.items()}, step=progress.step)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items())
        say(f"epoch {epoch + 1} of {self.settings.epochs}: {shown}")
        if progress.best is None or found.score > progress.best:
            progress.best, progress.best_epoch = found.score, epoch + 1
            with whole_file(self.best) as file:
                torch.save(self.objective.state_dict(), file)

    def _save(self) -> None:
        folder = checkpoints.place_of(self.run.checkpoints, self.progress.step)
        # Not as safetensors, which leave out a module that is there under two names.
        self.accelerator.save_state(str(folder), safe_serialization=False)
        self.accelerator.wait_for_everyone()  # each writes a file of its own
        if self.accelerator.is_main_process:
            checkpoints.keep(self.run.checkpoints, self.progress.step)
        self.accelerator.wait_for_everyone()


def _decayed(objective: Objective, weight_decay: float) -> list[dict[str, Any]] | None:
    """The host's parameters in two groups: biases, gains and scales are not decayed."""
    parameters = [p for p in objective.host.parameters() if p.requires_grad]
    flat, rest = [p for p in parameters if p.ndim < 2], [p for p in parameters if p.ndim >= 2]
    groups = [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": weight_decay}]
    return [group for group in groups if group["params"]]


@contextmanager
def _bar(total: int, done: int, main: bool) -> Iterator[Callable[..., None]]:
    """A progress bar where there is a terminal, and what updates it."""
    progress = require("rich.progress")
    console = require("rich.console").Console()
    columns = (
        progress.TextColumn("step"),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TextColumn("loss {task.fields[loss]}"),
        progress.TimeRemainingColumn(),
    )
    bar = progress.Progress(
        *columns, console=console, transient=True, disable=not (main and console.is_terminal)
    )
    with bar:
        task = bar.add_task("fit", total=total, completed=done, loss="-")
        yield lambda **values: bar.update(task, **values)
