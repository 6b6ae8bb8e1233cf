"""open_clip's main with another loss: what it calls, replaced for the time of one run."""

import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dro_temp import distributed
from dro_temp.integrations.open_clip import checkpoint
from dro_temp.integrations.open_clip.data import number
from dro_temp.integrations.open_clip.loss import GROUP, ModelGroups, OpenClipLoss
from dro_temp.integrations.open_clip.numbers import read_numbers
from dro_temp.integrations.open_clip.options import Options, refuse
from dro_temp.integrations.open_clip.seams import Overlay, accuracy, replaced
from dro_temp.optim import CompositionalOptimizer, hold_factor
from dro_temp.risks import RecordedRisk

_VERSIONS = "open_clip_torch>=3.0,<4"
_HOLD = 0.3  # where the network learns from a queue, which says nothing while scores hardly differ

_MOST_SUSPECTS = 100_000  # other processes wait while one writes them


class Training:
    """One run of open_clip's main with a scheme of this package.

    Each method named in `SEAMS` stands for what main calls by that name, and receives it as its first argument.

    Args:
        options: this package's.
    """

    SEAMS = (
        "parse_args", "create_model_and_transforms", "cosine_lr", "const_lr", "const_lr_cooldown", "pt_load",
        "get_data", "create_loss", "train_one_epoch",
    )  # fmt: skip

    def __init__(self, options: Options) -> None:
        self.options = options
        self.loss: OpenClipLoss | None = None
        self.optimizer: CompositionalOptimizer | None = None
        self._args: Any = None
        self._width: Callable[[], int]
        self._loader: Any = None
        self._num_samples = self._steps = 0
        self._hold = 0.0
        self._saved: dict[str, Any] | None = None
        self._random: list[dict[str, Any]] = []

    @contextmanager
    def inside(self, main: Any, zero_shot: Any) -> Iterator[None]:
        """Replace what main calls; on the way out everything is as before.

        Args:
            main: `open_clip_train.main`.
            zero_shot: `open_clip_train.zero_shot`.

        Raises:
            ImportError: this version of open_clip has no such function.
        """
        names = {main: (*self.SEAMS, "torch"), zero_shot: ("accuracy",)}
        for module, wanted in names.items():
            if missing := [name for name in wanted if not hasattr(module, name)]:
                raise ImportError(
                    f"expected {module.__name__} to call {', '.join(missing)}, received open_clip_torch "
                    f"{importlib.metadata.version('open_clip_torch')}, which does not. Run: pip install '{_VERSIONS}'"
                )
        seams: dict[str, Any] = {
            name: partial(getattr(self, name), getattr(main, name)) for name in self.SEAMS
        }
        real, parallel = main.torch, main.torch.nn.parallel
        wrapper = partial(self.distributed_model, parallel.DistributedDataParallel)
        seams["torch"] = Overlay(
            real,
            save=partial(self.save, real.save),
            nn=Overlay(real.nn, parallel=Overlay(parallel, DistributedDataParallel=wrapper)),
        )
        with replaced(main, **seams), replaced(zero_shot, accuracy=accuracy):
            yield

    # In the order in which main calls them -----------------------------------------------------------------

    def parse_args(self, real: Callable[..., Any], argv: list[str]) -> Any:
        """open_clip's options, with this package's beside them: main logs them all."""
        self._args = args = real(argv)
        if self.trains:
            refuse(self.options, args)
        vars(args).update(self.options.recorded())
        return args

    @property
    def trains(self) -> bool:
        """Whether main trains, and not only evaluates."""
        return bool(self._args.train_data or self._args.dataset_type == "synthetic")

    def create_model_and_transforms(self, real: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """A model that reads sample numbers."""
        model, *transforms = real(*args, **options)
        self._width = partial(embedding_width, model)
        return (read_numbers(model), *transforms)

    def distributed_model(self, real: Callable[..., Any], model: nn.Module, **options: Any) -> Any:
        """The wrapped model. On a CPU it has no `device_ids`, which main passes and torch refuses there."""
        if torch.device(self._args.device).type == "cpu":
            options.pop("device_ids", None)
        return real(model, **options)

    def cosine_lr(self, real: Callable[..., Any], optimizer: Optimizer, *args: Any) -> Any:
        """A schedule of the model's learning rate alone."""
        return real(ModelGroups(optimizer), *args)

    const_lr = const_lr_cooldown = cosine_lr

    def pt_load(self, real: Callable[..., Any], file: str, **options: Any) -> Any:
        """A checkpoint as open_clip knows it; the rest is kept for later."""
        loaded = real(file, **options)
        if self.trains and isinstance(loaded, dict) and "epoch" in loaded:
            self._saved = loaded.pop(checkpoint.KEY, None)
            self._refuse_other_run(file)
        return loaded

    def get_data(self, real: Callable[..., Any], args: Any, *others: Any, **options: Any) -> Any:
        """open_clip's data; training samples have numbers."""
        data = real(args, *others, **options)
        if "train" in data:
            self._num_samples = number(data["train"], args, self.options.table_size)
            self._loader = data["train"].dataloader
        return data

    def create_loss(self, real: Callable[..., Any], args: Any) -> Any:
        """The scheme's loss, and its state if the run is resumed."""
        steps_per_epoch = self._loader.num_batches // args.accum_freq
        if steps_per_epoch < 1:
            raise ValueError(
                f"expected data for at least one step in an epoch, received {self._loader.num_batches} batches of "
                f"{args.batch_size} with --accum-freq {args.accum_freq}. Type a smaller --batch-size or --accum-freq."
            )
        facts = {"num_samples": self._num_samples, "width": self._width(), "epochs": args.epochs}
        # The same start on every process, and the batches that plain open_clip would draw with this seed.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)  # those of devices go on as they are
            recipe = partial(self.options.objective, steps_per_epoch=steps_per_epoch, **facts)
            loss = OpenClipLoss.from_recipe(recipe, accum_freq=args.accum_freq).to(args.device)
        if self._saved is not None:
            if self._saved["num_samples"] != self._num_samples:
                raise ValueError(
                    f"expected the {self._saved['num_samples']} sample numbers of the run that is resumed, received "
                    f"{self._num_samples}. Pass the same --train-data (shards: the same --train-num-samples or "
                    "--table-size)."
                )
            loss.load_state_dict(self._saved["loss"])
        described = ", ".join(f"{k} {v}" for k, v in self.options.recorded().items() if v is not None)
        logging.info(f"Loss of dro_temp: {described}; {self._num_samples} sample numbers")
        needed = _HOLD if len(loss.objective.tau_losses) and not args.skip_scheduler else 0.0
        self._hold = needed if self.options.hold is None else self.options.hold
        self._steps = args.epochs * steps_per_epoch
        self.loss = loss
        return _Logged(loss, starts=self._saved is None)

    def train_one_epoch(
        self,
        real: Callable[..., Any],
        model: nn.Module,
        data: Any,
        loss: Any,
        epoch: int,
        optimizer: Optimizer,
        scaler: Any,
        scheduler: Any,
        *others: Any,
        **options: Any,
    ) -> None:
        """An epoch of open_clip's loop, whose steps also commit the memory."""
        device = torch.device(self._args.device)
        if not isinstance(loss, _Logged):
            raise RuntimeError(
                f"expected main to train with the loss of its create_loss, received {type(loss).__name__} with "
                f"open_clip_torch {importlib.metadata.version('open_clip_torch')}. Run: pip install '{_VERSIONS}'"
            )
        if self.optimizer is None:
            # A gradient scaler handles overflow by itself.
            loss.loss.objective.check_finite = scaler is None
            self.optimizer = loss.loss.optimizer(optimizer, tau_lr=self._tau_lr)
            if self._saved is not None:
                checkpoint.load_temperatures(self.optimizer, self._saved["optimizer"])
                if len(self._saved["random"]) == distributed.world_size():
                    checkpoint.set_random_state(self._saved["random"][distributed.rank()], device)
        held = self._with_temperatures_held(scheduler)
        real(model, data, loss, epoch, self.optimizer, scaler, held, *others, **options)
        self._random = checkpoint.random_states(device)

    def save(self, real: Callable[..., Any], value: Any, *args: Any, **options: Any) -> None:
        """`torch.save` of a checkpoint, with this package's state under its own key."""
        if self.loss is not None and isinstance(value, dict) and "optimizer" in value:
            theirs, ours = checkpoint.without_temperatures(value["optimizer"])
            # Evaluation may have drawn numbers on this process since the epoch ended.
            own = checkpoint.random_state(torch.device(self._args.device))
            states = [own if r == distributed.rank() else s for r, s in enumerate(self._random)]
            state = {"options": self.options.recorded(), "num_samples": self._num_samples}
            state |= {"loss": self.loss.state_dict(), "optimizer": ours, "random": states}
            value = {**value, "optimizer": theirs, checkpoint.KEY: state}
            for risk in self.loss.objective.modules():
                if isinstance(risk, RecordedRisk):
                    path = Path(self._args.checkpoint_path).with_name("suspects.csv")
                    risk.write_csv(path, _MOST_SUSPECTS)
        real(value, *args, **options)

    # ----------------------------------------------------------------------------------------------------------

    @property
    def _tau_lr(self) -> float:
        return float(self._args.lr if self.options.tau_lr is None else self.options.tau_lr)

    def _with_temperatures_held(self, scheduler: Callable[[int], Any]) -> Callable[[int], Any]:
        assert self.optimizer is not None
        if self._hold == 0.0:
            return scheduler
        steps = max(1, round(self._hold * self._steps))
        (group,) = (group for group in self.optimizer.param_groups if group.get("name") == GROUP)

        def scheduled(step: int) -> Any:
            last_third = min(1.0, 3.0 * (1.0 - step / self._steps))
            group["lr"] = self._tau_lr * last_third * hold_factor(step, steps, max(1, steps // 10))
            return scheduler(step)

        return scheduled

    def _refuse_other_run(self, file: str) -> None:
        if self._saved is None:
            raise ValueError(
                f"expected a checkpoint that this command wrote, received {file}, which has no entry "
                f"{checkpoint.KEY!r}. To start from its weights, type --pretrained {file} in place of --resume."
            )
        was = self._saved["options"]
        for name, value in self.options.recorded().items():
            if was.get(name) != value:
                option = f"--{name.replace('_', '-')}"
                typed = "no " + option if value is None else f"{option} {value}"
                instead = f"Leave {option} out" if was.get(name) is None else f"Type {option} {was[name]}"
                raise ValueError(
                    f"expected the options that {file} was made with, received {typed}. {instead}, or start another "
                    f"run from its weights: --pretrained {file} in place of --resume."
                )


class _Logged:
    """A loss for the loop, whose temperatures are logged beside it.

    The loop logs all items of what a loss returns, and minimises the sum of its values.
    """

    def __init__(self, loss: OpenClipLoss, *, starts: bool) -> None:
        self.loss, self._starts = loss, starts

    def __call__(self, image_features: Tensor, text_features: Tensor, **others: Any) -> Any:
        if self._starts:  # as the paper does; the first process's prototypes are then those of all
            self.loss.objective.start_prototypes(image_features, text_features)
            self._starts = False
        losses = self.loss(image_features, text_features, **others)
        return _LossesAndMetrics(losses, {k: v for k, v in self.loss.metrics.items() if k != "loss"})


class _LossesAndMetrics(dict[str, Tensor]):
    """Losses, and numbers that are among its items but not among its values."""

    def __init__(self, losses: dict[str, Tensor], metrics: dict[str, Tensor]) -> None:
        super().__init__(losses)
        self._metrics = metrics

    def items(self) -> Any:
        return {**self, **self._metrics}.items()


def embedding_width(model: Any) -> int:
    """Width of the embeddings of a model of open_clip.

    Raises:
        TypeError: none of its parts says so.
    """
    towers = (getattr(model, name, None) for name in ("visual", "text"))
    found = [getattr(tower, "output_dim", None) for tower in towers]
    projection = getattr(model, "text_projection", None)
    found += [getattr(projection, "out_features", None), *getattr(projection, "shape", ())[-1:]]
    width = next((width for width in found if isinstance(width, int)), None)
    if width is None:
        raise TypeError(
            f"expected a model that knows the width of its embeddings, received {type(model).__name__}. Train it in a "
            "loop of your own: OpenClipLoss."
        )
    return width
