"""Train a classifier with a temperature per image with accelerate, on one or several devices."""

from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

import dro_temp as dt
from dro_temp.datasets import GlyphScripts


@dataclass(frozen=True)
class Options:
    """Glyphs of 12 scripts."""

    size: int = 4_000  # training images
    epochs: int = 3  # passes over the training images
    lr: float = 2e-3  # learning rate of the model
    tau_lr: float = 2e-3  # learning rate of the network that predicts temperatures
    rho: float = 1.0  # radius of the robust loss in nats
    seed: int = 0  # seed of weights, order and subset
    out: Path = Path("runs/accelerate_classifier")  # folder of the checkpoint
    resume: bool = False  # continue from the checkpoint


# --8<-- [start:loop]
def run(o: Options) -> float:
    """Train; return the validation accuracy in percent."""
    accelerator = Accelerator()
    set_seed(o.seed)
    host = dt.hosts.Timm(timm.create_model("test_resnet", in_chans=1, num_classes=len(GlyphScripts.classes)))
    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(host.width), tau_min=0.05, tau_max=4.0, tau_init=1.0)
    objective = dt.Objective(host, tempnet, dt.KLRobustLoss(o.rho))
    groups = objective.param_groups(lr=o.lr, tau_lr=o.tau_lr)
    optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(groups), objective)
    train = DataLoader(GlyphScripts(size=o.size, seed=o.seed), 64, shuffle=True)
    objective, optimizer, train, validation = accelerator.prepare(
        objective, optimizer, train, DataLoader(GlyphScripts("val"), 256)
    )
    if o.resume:
        accelerator.load_state(str(o.out))
    for _ in range(o.epochs):
        objective.train()
        for images, labels in train:
            output = objective(images, labels)
            accelerator.backward(output.loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.save_state(str(o.out))
        accelerator.print(output.metrics)
    return tested(accelerator, objective.eval(), validation)


# --8<-- [end:loop]


@torch.no_grad()
def tested(accelerator: Accelerator, objective: torch.nn.Module, loader: DataLoader) -> float:
    """Accuracy in percent, over all processes."""
    host, right = accelerator.unwrap_model(objective).host, []
    for images, labels in loader:
        rows = host(images, labels)["class"]
        right.append(accelerator.gather_for_metrics(rows.dense_scores.argmax(1) == rows.target))
    return 100 * torch.cat(right).double().mean().item()


if __name__ == "__main__":
    print(f"{run(tyro.cli(Options, prog='accelerate_classifier.py', description=__doc__)):.1f} % right")
