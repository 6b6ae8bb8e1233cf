"""Train in spite of wrong labels, and find them. Handwritten digits; needs scikit-learn, no downloads."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from rich.progress import track
from sklearn.datasets import load_digits
from torch import nn

import dro_temp as dt


@dataclass(frozen=True)
class Options:
    """1,200 digits for training, some with a wrong label; 597 for testing."""

    wrong: float = 0.3  # share of the training labels that are redrawn; a tenth of those are right by chance
    rho: float = 0.5  # final radius: a share of 1 - exp(-rho) of the samples is left out
    smoothing: float = 0.1  # label smoothing
    epochs: int = 40  # passes over the images
    lr: float = 3e-3  # learning rate of AdamW
    seed: int = 0  # seed of the split, the wrong labels and the networks
    out: Path = Path("runs/wrong_labels")  # folder for the picture
    quick: bool = False  # two epochs


def network() -> nn.Module:
    first, second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
    body = (first, nn.GELU(), nn.MaxPool2d(2), second, nn.GELU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 10))


def trained(
    o: Options, risk: dt.interfaces.SampleRisk, images: torch.Tensor, labels: torch.Tensor
) -> nn.Module:
    torch.manual_seed(o.seed)
    model = network()
    base = torch.optim.AdamW(model.parameters(), lr=o.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, o.epochs)
    optimizer = dt.CompositionalOptimizer(base, risk)  # counts the steps
    for _ in track(range(o.epochs), type(risk).__name__):
        for batch in torch.randperm(len(labels)).split(64):
            losses = nn.functional.cross_entropy(
                model(images[batch]), labels[batch], reduction="none", label_smoothing=o.smoothing
            )
            risk(losses).backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return model.eval()


def run(o: Options) -> None:
    torch.manual_seed(o.seed)
    digits, order = load_digits(), torch.randperm(1797)
    images, right = torch.tensor(digits.images / 16).float()[order, None], torch.tensor(digits.target)[order]
    labels = torch.where(torch.rand(1200) < o.wrong, torch.randint(10, (1200,)), right[:1200])
    # Nothing is left out before every class is learned.
    rising = dt.risks.RisingRadius(dt.KLRisk(0.0), o.rho, steps=o.epochs * len(labels) // 64)
    for risk in (dt.risks.MeanRisk(), dt.OptimisticRisk(rising)):
        model = trained(o, risk, images[:1200], labels)
        accuracy = 100 * (model(images[1200:]).argmax(1) == right[1200:]).double().mean()
        print(f"{type(risk).__name__}: {accuracy:.1f} % of the test images classified correctly")
    weight = risk.weights(nn.functional.cross_entropy(model(images[:1200]), labels, reduction="none"))
    suspects, wrong = weight.argsort(), labels != right[:1200]
    precision = wrong[suspects[: int(wrong.sum())]].double().mean()
    print(f"{wrong.sum()} labels are wrong; of as many with the lowest weights, {100 * precision:.1f} % are")
    sheet = Figure(figsize=(9, 3), layout="constrained")
    for axes, i in zip(sheet.subplots(2, 8).flat, suspects, strict=False):
        axes.imshow(images[i, 0].numpy(), cmap="gray_r")
        axes.set_title(f"given {labels[i]}, is {right[i]}", fontsize=8)
        axes.set_axis_off()
    o.out.mkdir(parents=True, exist_ok=True)
    sheet.savefig(o.out / "suspects.png")


if __name__ == "__main__":
    options = tyro.cli(Options, prog="find_wrong_labels.py", description=__doc__)
    run(replace(options, epochs=2) if options.quick else options)
