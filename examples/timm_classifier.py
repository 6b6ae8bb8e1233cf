"""Train a timm classifier with a temperature per image, to classify glyphs by script. No downloads."""

from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
import tyro
from rich.progress import track
from timm.data import Mixup
from torch.utils.data import DataLoader

import dro_temp as dt
from dro_temp.datasets import GlyphScripts
from dro_temp.plotting import image_extremes, temperature_by_concept


@dataclass(frozen=True)
class Options:
    """Images of 12 scripts from 20 fonts; validation and test are in other fonts."""

    model: str = "test_resnet"  # any of timm.list_models(); trained from scratch
    size: int = 8_000  # training images, 18,550 at most
    epochs: int = 4  # passes over the training images
    batch_size: int = 64  # batch size
    lr: float = 2e-3  # learning rate of the model
    tau_lr: float = 2e-3  # learning rate of the network that predicts temperatures
    rho: float = 2.0  # radius of the robust loss in nats, below log 12 = 2.5
    mixup: float = 0.0  # timm's Mixup, if above 0; labels are then distributions
    seed: int = 0  # seed of weights, order and subset
    out: Path = Path("runs/timm_classifier")  # folder for the checkpoint and the plots
    quick: bool = False  # 640 images, one epoch


def objective_of(o: Options) -> dt.Objective:
    """The model, a TempNet on its head's input, and the robust loss."""
    torch.manual_seed(o.seed)
    model = timm.create_model(o.model, in_chans=1, num_classes=len(GlyphScripts.classes))
    host = dt.hosts.Timm(model)
    tempnet = dt.TempNet(dt.predictors.HiddenEncoder(host.width), tau_min=0.05, tau_max=4.0, tau_init=1.0)
    return dt.Objective(host, tempnet, dt.KLRobustLoss(o.rho))


@torch.no_grad()
def tested(objective: dt.Objective, data: GlyphScripts) -> tuple[float, torch.Tensor]:
    """Accuracy in percent, and the temperature of every image."""
    results = [(objective.host(*batch)["class"], objective(*batch)) for batch in DataLoader(data, 256)]
    right = torch.cat([rows.dense_scores.argmax(1) == rows.target for rows, _ in results])
    return 100 * right.double().mean().item(), torch.cat([output.tau["class"] for _, output in results])


def run(o: Options) -> None:
    """Train, test, plot."""
    o.out.mkdir(parents=True, exist_ok=True)
    objective = objective_of(o)
    groups = objective.param_groups(lr=o.lr, tau_lr=o.tau_lr, weight_decay=0.05)
    optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(groups), objective)
    val, test = GlyphScripts("val"), GlyphScripts("test")
    loader = DataLoader(GlyphScripts(size=o.size, seed=o.seed), o.batch_size, shuffle=True, drop_last=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, o.epochs * len(loader))
    mixup = Mixup(o.mixup, label_smoothing=0.0, num_classes=len(GlyphScripts.classes)) if o.mixup else None
    for epoch in range(o.epochs):
        objective.train()
        for images, labels in track(loader, f"epoch {epoch + 1}"):
            output = objective(*(mixup(images, labels) if mixup else (images, labels)))
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"loss {output.loss.item():.3f}, validation: {tested(objective.eval(), val)[0]:.1f} % right")
        torch.save(objective.state_dict(), o.out / "objective.pt")
    accuracy, tau = tested(objective.eval(), test)
    print(f"test: {accuracy:.1f} % right; temperatures {tau.mean():.3f} +- {tau.std():.3f}")
    temperature_by_concept(tau, test.labels, test.classes, k=6).savefig(o.out / "temperatures.png")
    image_extremes(test.images, [test.classes[i] for i in test.labels], tau).savefig(o.out / "extremes.png")


if __name__ == "__main__":
    options = tyro.cli(Options, prog="timm_classifier.py", description=__doc__)
    run(replace(options, size=640, epochs=1) if options.quick else options)
