"""Train a classifier with a temperature per image with Lightning."""

from dataclasses import dataclass
from pathlib import Path

import lightning
import timm
import torch
import tyro
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
    out: Path = Path("runs/lightning_classifier")  # folder for the checkpoints
    resume: Path | None = None  # a checkpoint to continue from


# --8<-- [start:module]
class RobustClassifier(lightning.LightningModule):
    """The objective is an ordinary submodule: its parameters and memory are in the checkpoint."""

    def __init__(self, objective: dt.Objective, lr: float, tau_lr: float) -> None:
        super().__init__()
        self.objective, self.lr, self.tau_lr = objective, lr, tau_lr

    def training_step(self, batch, _):
        """Loss of a batch."""
        output = self.objective(*batch)
        self.log("tau", output.metrics["class/tau_mean"], prog_bar=True)
        return output.loss

    def validation_step(self, batch, _):
        """Accuracy of a batch."""
        rows = self.objective.host(*batch)["class"]
        self.log("accuracy", (rows.dense_scores.argmax(1) == rows.target).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        """Any optimizer, wrapped so that its steps commit the memory."""
        groups = self.objective.param_groups(lr=self.lr, tau_lr=self.tau_lr)
        return dt.CompositionalOptimizer(torch.optim.AdamW(groups), self.objective)


# --8<-- [end:module]


def run(o: Options) -> lightning.Trainer:
    """Train."""
    lightning.seed_everything(o.seed)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=len(GlyphScripts.classes))
    host = dt.hosts.Timm(model)
    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(host.width), tau_min=0.05, tau_max=4.0, tau_init=1.0)
    module = RobustClassifier(dt.Objective(host, tempnet, dt.KLRobustLoss(o.rho)), o.lr, o.tau_lr)
    train = DataLoader(GlyphScripts(size=o.size, seed=o.seed), 64, shuffle=True)
    trainer = lightning.Trainer(max_epochs=o.epochs, accelerator="auto", default_root_dir=o.out, logger=False)
    trainer.fit(module, train, DataLoader(GlyphScripts("val"), 256), ckpt_path=o.resume)
    return trainer


if __name__ == "__main__":
    print(run(tyro.cli(Options, prog="lightning_classifier.py", description=__doc__)).callback_metrics)
