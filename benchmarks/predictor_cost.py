"""What predicted temperatures add to a training step, compared with one learned temperature.

Hosts of ordinary size with random weights: CLIP ViT-S/16 (open_clip) with a queue of 16,384 keys and four replayed rows
for each row of the batch, ResNet-50 (timm), GPT-2 small, trained and frozen, and GPT-2 medium, frozen. The added time
is measured with the host's outputs fixed, so that variation of the host's own time cannot hide it, and divided by the
time of a whole step with one learned temperature.

Run: python -m benchmarks.predictor_cost [--hosts clip resnet gpt2 gpt2-frozen gpt2-medium-frozen] [--rounds 5]
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dro_temp as dt
from benchmarks.harness.results import save
from benchmarks.harness.timing import interleaved, machine
from dro_temp.interfaces import HostAdapter, LinearScores, Rows

TITLE = "Time that a predictor adds to a training step"
ONE, PAPER, OURS = "one learned temperature", "TempNet (paper)", "TempNet (ours)"
SAMPLES, QUEUE = 1_000_000, 16_384
REPLAYED = 4  # rows for each row of the batch
NARROW = 64  # hidden width for exact rows, as in `TempNet.for_lm`


class FixedRows(HostAdapter):
    """A host that returns given rows, so that only what follows the host is timed."""

    def __init__(self, fixed: dict[str, Rows]) -> None:
        super().__init__()
        self.views, self.fixed = tuple(fixed), fixed  # type: ignore[misc]

    def rows(self, **batch: Any) -> dict[str, Rows]:
        """The same rows at every call, with indices of new samples."""
        self.fixed = {
            view: rows if rows.index is None else replace(rows, index=(rows.index + len(rows)) % SAMPLES)
            for view, rows in self.fixed.items()
        }
        return self.fixed


@dataclass(frozen=True)
class Case:
    """A host, a batch, and a function that builds the objective of each predictor on a host with the same rows."""

    host: HostAdapter
    batch: dict[str, Tensor]
    objective: Callable[[HostAdapter, str], dt.Objective]


def exact(width: int, outcomes: int, bounds: dict[str, float], rho: float) -> Callable[..., dt.Objective]:
    """Objectives over classes or tokens."""

    def build(host: HostAdapter, predictor: str) -> dt.Objective:
        networks = {
            ONE: lambda: dt.LearnableTemperature(1.0, **bounds),
            PAPER: lambda: dt.TempNet.for_logits(outcomes, **bounds),
            OURS: lambda: dt.TempNet(
                dt.predictors.SumEncoder(
                    [
                        dt.predictors.HiddenEncoder(width, width=NARROW),
                        dt.predictors.StatisticsEncoder(width=NARROW),
                    ]
                ),
                readout=dt.predictors.ResidualReadout,
                **bounds,
            ),
        }
        return dt.Objective(host, networks[predictor](), dt.KLRobustLoss(rho))

    return build


def clip(batch: int) -> Case:
    """CLIP with a small vision transformer."""
    import open_clip

    host = dt.hosts.OpenCLIP(open_clip.create_model("ViT-S-16"))
    data = {"images": torch.randn(batch, 3, 224, 224), "texts": torch.randint(1, 49_000, (batch, 77))}

    def build(host: HostAdapter, predictor: str) -> dt.Objective:
        recipes = {
            ONE: lambda: dt.Objective(
                host,
                dt.LearnableTemperature(0.05, tau_min=0.005, tau_max=0.2),
                {v: dt.KLRobustLoss(7.0, estimator=dt.LogMovingAverage(SAMPLES)) for v in host.views},
            ),
            PAPER: lambda: dt.recipes.tempnet(host, SAMPLES, 384),
            OURS: lambda: dt.recipes.tempnet_queued(host, SAMPLES, 384, queue=QUEUE, replay=REPLAYED * batch),
        }
        return recipes[predictor]()

    return Case(host, data | {"index": torch.arange(batch)}, build)


def resnet(batch: int) -> Case:
    """A classifier of a thousand classes."""
    import timm

    model = timm.create_model("resnet50", num_classes=0)
    host = dt.hosts.Classifier(model, nn.Linear(2048, 1000))
    data = {"inputs": torch.randn(batch, 3, 224, 224), "labels": torch.randint(1000, (batch,))}
    return Case(host, data, exact(2048, 1000, {"tau_min": 0.1, "tau_max": 10.0}, 3.0))


def gpt2(batch: int, *, frozen: bool = False, medium: bool = False) -> Case:
    """A language model; a sequence of 512 tokens for every eight of the batch."""
    import transformers

    size = {"n_embd": 1024, "n_layer": 24, "n_head": 16} if medium else {}
    config = transformers.GPT2Config(**size)
    host = dt.hosts.CausalLM(transformers.GPT2LMHeadModel(config), frozen=frozen)
    data = {"input_ids": torch.randint(50_257, (max(1, batch // 8), 512))}
    return Case(host, data, exact(config.n_embd, 50_257, {"tau_min": 0.1, "tau_max": 4.0}, 8.0))


HOSTS = {
    "clip": clip,
    "resnet": resnet,
    "gpt2": gpt2,
    "gpt2-frozen": lambda b: gpt2(b, frozen=True),
    "gpt2-medium-frozen": lambda b: gpt2(b, frozen=True, medium=True),
}


def detached(case: Case) -> FixedRows:
    """The host's rows of the batch, detached from it."""
    with torch.no_grad():
        views = case.host(**case.batch)
    trains = not case.host.frozen
    seen: dict[int, Tensor] = {}

    def leaf(x: Tensor | None) -> Tensor | None:
        # Both sides share their tensors; each tensor must be a single leaf.
        if x is None:
            return None
        return seen.setdefault(x.data_ptr(), x.detach().clone().requires_grad_(trains))

    def cut(rows: Rows) -> Rows:
        scores = rows.scores
        assert isinstance(scores, LinearScores)
        product = LinearScores(leaf(scores.queries), leaf(scores.keys), leaf(scores.bias), scores.transform)
        return Rows(
            product,
            rows.target,
            leaf(rows.features),
            rows.index,
            rows.target_in_support,
            rows.weight,
        )

    return FixedRows({view: cut(rows) for view, rows in views.items()})


def step(objective: dt.Objective, batch: dict[str, Tensor]) -> Callable[[], None]:
    """Forward, backward, commit."""
    objective.train()
    for loss in objective.modules():
        if isinstance(loss, dt.QueuedLoss):
            _fill(loss)

    def call() -> None:
        objective.zero_grad()
        objective(**batch).loss.backward()
        objective.commit()

    return call


def _fill(loss: dt.QueuedLoss) -> None:
    """Fill the queue, as after thousands of steps."""
    queue = loss.queue
    vectors = [
        nn.functional.normalize(torch.randn(queue.size, queue.features), dim=1) for _ in queue.entries[:-1]
    ]
    queue.write(*vectors, torch.arange(queue.size) + SAMPLES)  # samples outside the batch


def measured(case: Case, rounds: int) -> Iterator[tuple[str, float, float]]:
    """For each predictor the seconds that it adds after the host, and the seconds of a step with one temperature."""
    names = (ONE, PAPER, OURS)
    after = detached(case)
    parts = interleaved({name: step(case.objective(after, name), {}) for name in names}, rounds, repeats=1)
    whole = interleaved({ONE: step(case.objective(case.host, ONE), case.batch)}, rounds, repeats=1)
    total = statistics.median(whole[ONE])
    for name in names:
        added = [own - one for own, one in zip(parts[name], parts[ONE], strict=True)]
        yield name, statistics.median(added), total


def main() -> None:
    """Measure the selected hosts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--hosts", nargs="+", choices=list(HOSTS), default=list(HOSTS), help="hosts to measure (default: all)"
    )
    parser.add_argument("--batch", type=int, default=16, help="images, or pairs, per step")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each predictor")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/predictor_cost.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = []
    for name in options.hosts:
        title = f"what a predictor adds to a step: {name}"
        table = Table("predictor", "added ms", "step ms", "added", title=title)
        for predictor, added, total in measured(HOSTS[name](options.batch), options.rounds):
            results.append({"host": name, "predictor": predictor, "added_s": added, "step_s": total})
            share = f"{100 * added / total:+.2f} %"
            table.add_row(predictor, f"{1e3 * added:.2f}", f"{1e3 * total:.0f}", share)
        Console().print(table)
        # After every host, so that an interrupted run leaves whole ones.
        about = {"machine": machine(), "options": {"batch": options.batch, "rounds": options.rounds}}
        save(options.out, TITLE, "cpu", {**about, "results": results})


if __name__ == "__main__":
    main()
