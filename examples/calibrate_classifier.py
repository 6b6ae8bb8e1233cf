"""Calibrate a frozen classifier: one temperature, or one per input? Needs scikit-learn; no downloads."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from sklearn.datasets import load_digits

import dro_temp as dt
from dro_temp.evaluation import evaluate_classifier
from dro_temp.plotting import reliability_diagram


@dataclass(frozen=True)
class Options:
    """Handwritten digits: 800 for training, 400 to fit temperatures, 597 for testing."""

    wrong: float = 0.2  # share of the training labels that are redrawn
    blotched: float = 0.5  # share of the other images that get noise, which the training images do not have
    noise: float = 0.4  # standard deviation of the noise; a white pixel is 1
    epochs: int = 150  # epochs of the classifier, enough to memorise the wrong labels
    steps: int = 100  # steps of each predictor, on the whole calibration split
    rho: float = 1.0  # radius of the robust loss in nats
    seed: int = 0  # seed of splits, noise and networks
    out: Path = Path("runs/calibration")  # folder for the diagram
    quick: bool = False  # few epochs and steps


def splits(o: Options) -> list[tuple[torch.Tensor, torch.Tensor]]:
    digits, chosen = load_digits(), torch.randperm(1797)
    images, labels = torch.tensor(digits.data / 16).float()[chosen], torch.tensor(digits.target)[chosen]
    labels[:800] = torch.where(torch.rand(800) < o.wrong, torch.randint(10, (800,)), labels[:800])
    images[800:] += o.noise * (torch.rand(997, 1) < o.blotched) * torch.randn(997, 64)
    return [(images[part], labels[part]) for part in (slice(800), slice(800, 1200), slice(1200, None))]


def fit(objective: dt.Objective, data: tuple, steps: int, batch_size: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(objective.param_groups(lr=lr))
    for _ in range(steps):
        batch = torch.randperm(len(data[1]))[:batch_size]
        objective(*(x[batch] for x in data)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run(o: Options) -> None:
    torch.manual_seed(o.seed)
    training, calibration, test = splits(o)
    layer, relu, head = torch.nn.Linear, torch.nn.ReLU(), torch.nn.Linear(128, 10)
    body = torch.nn.Sequential(layer(64, 128), relu, layer(128, 128), relu)
    as_is = dt.Objective(dt.hosts.Classifier(body, head), dt.ConstantTemperature(1.0), dt.LikelihoodLoss())
    fit(as_is, training, 13 * o.epochs, 64, lr=2e-3)

    # --8<-- [start:fit]
    frozen, tempnets = dt.hosts.Classifier(body, head, frozen=True), {}
    for name, loss in (("likelihood", dt.LikelihoodLoss()), ("robust", dt.KLRobustLoss(o.rho))):
        encoder, bounds = (
            dt.predictors.StatisticsEncoder(width=32),
            {"tau_min": 0.2, "tau_max": 20.0, "tau_init": 2.0},
        )
        tempnets[f"TempNet, {name}"] = tau = dt.TempNet(
            encoder, readout=dt.predictors.ResidualReadout, **bounds
        )
        fit(dt.Objective(frozen, tau, loss), calibration, o.steps, 400, lr=5e-3)
    report = evaluate_classifier(frozen, [test], validation=[calibration], predictors=tempnets)
    # --8<-- [end:fit]
    o.out.mkdir(parents=True, exist_ok=True)
    reliability_diagram(report.reliability).savefig(o.out / "reliability.png")
    print(f"{report}\n\nthe diagram: {o.out / 'reliability.png'}")


def main(args: list[str] | None = None) -> int:
    try:
        o = tyro.cli(Options, args=args, prog="calibrate_classifier.py")
        run(replace(o, epochs=10, steps=10) if o.quick else o)
    except (KeyboardInterrupt, ValueError) as error:
        print(f"calibrate_classifier.py: {str(error) or 'stopped'}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
