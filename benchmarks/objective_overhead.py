"""Cost of the robust objective relative to InfoNCE: one forward and backward of the demo's model.

Run: python -m benchmarks.objective_overhead [--batch-size 256] [--rounds 40]
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from glyphs.model import WIDTH, TextEncoder, image_encoder
from torch import Tensor, nn

import dro_temp as dt
from benchmarks.harness.timing import interleaved, ratios, report

WORDS, LENGTH, PAIRS = 2000, 12, 10_000
PLAIN = "plain PyTorch InfoNCE"


class Clip(nn.Module):
    """CLIP's loss in plain PyTorch: the baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.images, self.texts = image_encoder(), TextEncoder(WORDS)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Mean of both directions."""
        x = nn.functional.normalize(self.images(images), dim=1)
        y = nn.functional.normalize(self.texts(tokens), dim=1)
        logits = self.logit_scale.exp() * x @ y.T
        label = torch.arange(len(logits))
        return (nn.functional.cross_entropy(logits, label) + nn.functional.cross_entropy(logits.T, label)) / 2


def objective(predictor: Callable[[], dt.TemperaturePredictor], robust: bool = True) -> dt.Objective:
    host = dt.hosts.TwoTower(image_encoder(), TextEncoder(WORDS))
    if not robust:
        return dt.Objective(host, predictor(), dt.InfoNCELoss())
    loss = {v: dt.KLRobustLoss(2.0, estimator=dt.LogMovingAverage(PAIRS)) for v in host.views}
    return dt.Objective(host, {v: predictor() for v in host.views}, loss)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=256, help="pairs per step")
    parser.add_argument(
        "--rounds", type=int, default=40, help="rounds; each contender runs three times in each"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/objective_overhead.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.rand(options.batch_size, 1, 32, 32)
    tokens = torch.randint(2, WORDS, (options.batch_size, LENGTH))
    index = torch.randperm(PAIRS)[: options.batch_size]

    bounds = {"tau_min": 0.01, "tau_max": 0.2}
    models: dict[str, nn.Module] = {
        PLAIN: Clip(),
        "Objective, InfoNCE": objective(dt.LearnableTemperature, robust=False),
        "robust, constant": objective(lambda: dt.ConstantTemperature(0.07)),
        "robust, learnable": objective(dt.LearnableTemperature),
        "robust, individual": objective(lambda: dt.IndividualTemperature(PAIRS, **bounds)),
        "robust, TempNet": objective(lambda: dt.TempNet(WIDTH, **bounds)),
    }

    def step(model: nn.Module) -> Callable[[], Any]:
        def call() -> None:
            model.zero_grad()
            if isinstance(model, dt.Objective):
                model(images, tokens, index=index).loss.backward()
                model.commit()
            else:
                model(images, tokens).backward()

        return call

    seconds = interleaved({name: step(model) for name, model in models.items()}, options.rounds, repeats=3)
    title = f"forward + backward of the demo's two towers, batch {options.batch_size}, fp32 CPU"
    report(title, ratios(seconds, PLAIN), PLAIN, options.out)


if __name__ == "__main__":
    main()
