"""timm's training loop with a robust loss: the steps of its `train.py`, on a generated folder of images."""

import sys
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import tyro
from rich.progress import track
from timm.data import Mixup, create_dataset, create_loader
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.task import TrainingTask
from timm.utils import AverageMeter, CheckpointSaver, NativeScaler, accuracy

import dro_temp as dt
from dro_temp.datasets import GlyphScripts


@dataclass(frozen=True)
class Options:
    """Glyphs of 12 scripts as PNG files, one folder per script."""

    model: str = "test_vit"  # any of timm.list_models()
    size: int = 4_000  # training images
    epochs: int = 3  # passes over the training images
    batch_size: int = 64  # batch size
    lr: float = 2e-3  # learning rate of the model's last layer; lower for earlier ones
    tau_lr: float = 1e-3  # learning rate of the network that predicts temperatures
    rho: float = 1.0  # radius of the robust loss in nats
    mixup: float = 0.2  # alpha of Mixup; 0 disables it
    side: int = 64  # image size in pixels
    seed: int = 0  # seed of weights, order and subset
    out: Path = Path("runs/timm_training_loop")  # folder for images and checkpoints


# --8<-- [start:task]
class RobustTask(TrainingTask):
    """A timm task: the objective in place of a model and a criterion."""

    def __init__(self, model, tempnet: dt.TempNet, loss: dt.RobustLoss) -> None:
        super().__init__(verbose=False)
        self.objective = dt.Objective(dt.hosts.Timm(model), tempnet, loss)
        self.trainable_module, self.eval_model = self.objective, model

    def forward(self, images, target):
        """Loss of a batch, and the values that the loop logs."""
        output = self.objective(images, target)
        return {"loss": output.loss, "tau": output.metrics["class/tau_mean"]}

    def get_task_state(self, module=None, ema=False):
        """State that a checkpoint stores beside the model."""
        objective = self.trainable_module_ema.module if ema else self.objective
        return {"predictors": objective.predictors.state_dict(), "losses": objective.losses.state_dict()}


# --8<-- [end:task]


def loaders(o: Options, mean, std):
    """Timm's loaders over the two folders."""
    for split, size in (("train", o.size), ("val", None)):
        folder = GlyphScripts(split, size=size, seed=o.seed).write(
            o.out / f"images-{o.size}-{o.seed}" / split
        )
        yield create_loader(
            create_dataset("", folder, split="", input_img_mode="L"), (1, o.side, o.side), o.batch_size,
            is_training=split == "train", hflip=0.0, color_jitter=None, scale=(0.7, 1.0), mean=mean, std=std,
            num_workers=0, persistent_workers=False, use_prefetcher=False, device=torch.device("cpu"))  # fmt: skip


def run(o: Options) -> float:
    """Train; return the best accuracy of the averaged model."""
    torch.manual_seed(o.seed)
    options = {"img_size": o.side} if "vit" in o.model else {}
    model = timm.create_model(o.model, in_chans=1, num_classes=len(GlyphScripts.classes), **options)
    tempnet = dt.TempNet(
        dt.predictors.HiddenEncoder(model.head_hidden_size), tau_min=0.05, tau_max=4.0, tau_init=1.0
    )
    task = RobustTask(model, tempnet, dt.KLRobustLoss(o.rho))
    layers = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
    groups = task.objective.param_groups(lr=o.lr, tau_lr=o.tau_lr, host=layers)
    base = create_optimizer_v2(groups, opt="adamw", lr=o.lr)
    optimizer, scaler = dt.CompositionalOptimizer(base, task.objective), NativeScaler(device="cpu")
    schedule, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=o.epochs, warmup_epochs=0)
    train, validation = loaders(o, mean=(0.5,), std=(0.5,))
    mixup = Mixup(o.mixup, label_smoothing=0.1, num_classes=model.num_classes) if o.mixup else None
    task.setup_ema(decay=0.99, use_warmup=True)
    saver = CheckpointSaver(model, optimizer, amp_scaler=scaler, checkpoint_dir=str(o.out), task=task)
    best = 0.0
    for epoch in range(epochs):
        schedule.step(epoch)
        task.train()
        losses = AverageMeter()
        for step, (images, target) in enumerate(track(train, f"epoch {epoch + 1}")):
            output = task(*(mixup(images, target) if mixup else (images, target)))
            scaler(output["loss"], optimizer, clip_grad=1.0, parameters=task.objective.parameters())
            optimizer.zero_grad()
            task.update_ema(step=epoch * len(train) + step)
            losses.update(output["loss"].item(), len(target))
        top = validated(task.trainable_module_ema.module.host.model.eval(), validation)
        best, _ = saver.save_checkpoint(epoch, metric=top)
        print(
            f"loss {losses.avg:.3f}, mean temperature {output['tau']:.3f}, {top:.1f} % right (averaged weights)"
        )
    return best


@torch.no_grad()
def validated(model, loader) -> float:
    """Accuracy in percent."""
    top = AverageMeter()
    for images, target in loader:
        top.update(accuracy(model(images), target)[0].item(), len(target))
    return top.avg


if __name__ == "__main__":
    run(tyro.cli(Options, prog="timm_training_loop.py", description=__doc__))
    sys.exit(0)
