"""What samples that share an entry of a `SampleTable` cost: estimates, gradients and retrieval by size of the table.

Two towers are trained on glyph-caption pairs with moving averages whose entries are places in the data set (exact)
or hashes of keys, in tables of n / size = 0.1 to 8 samples per entry. All tables of one seed see the same weights at
the start and the same batches. Then the model is held still for twenty epochs in which the averages go on,
and with them the gradient of the whole data set is compared with the exact one.

Run: python benchmarks/hash_collisions.py [--seeds 0 1 2 3 4] [--out FILE]     (three minutes of one core)
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from harness.study import cell
from timing import machine
from torch import Tensor

import dro_temp as dt
from dro_temp import functional as F
from dro_temp.datasets import GlyphCaptions, SampleTable, WordTokenizer
from dro_temp.evaluation import retrieval_recall

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

N, BATCH, EPOCHS, STILL = 1024, 64, 7, 20
TAU, RHO, GAMMA, LR = 0.1, 1.0, 0.5, 4e-3
PER_ENTRY = (0.1, 0.5, 1.0, 2.0, 8.0)
COLUMNS = {
    "shared": ("samples that share (%)", 1),
    "expected": ("expected (%)", 1),
    "log_u": ("error of log u", 3),
    "gradient": ("error of gradient (%)", 1),
    "cosine": ("cosine to exact", 4),
    "recall": ("R@1 (%)", 1),
    "difference": ("R@1 less exact", 1),
}


class Pairs:
    """Training pairs with keys, and held-out ones of the same names."""

    def __init__(self) -> None:
        from glyphs.model import as_float

        train, held_out = (GlyphCaptions(split, size=N) for split in ("train", "val_seen"))
        tokenizer = WordTokenizer.fit(train.captions)
        self.vocabulary = len(tokenizer.vocabulary)
        self.images, self.texts = as_float(train.images), tokenizer(train.captions)
        self.keys = [f"{f}/U+{c:04X}" for f, c in zip(train.fonts, train.codepoints, strict=True)]
        self.held_out, self.names = as_float(held_out.images), tokenizer(held_out.names)
        self.name_of = held_out.name_index

    def recall(self, host: dt.hosts.TwoTower) -> float:
        """Mean R@1 of both directions, in percent."""
        image, text = host.encode_image(self.held_out), host.encode_text(self.names)
        places = torch.arange(len(self.names))
        both = (image, text, self.name_of, places), (text, image, places, self.name_of)
        return sum(float(retrieval_recall(*way, ks=(1,))[1]) for way in both) / 2


def train(pairs: Pairs, numbers: Tensor, size: int, seed: int) -> dt.Objective:
    """Train both towers."""
    from glyphs.model import TextEncoder, image_encoder

    torch.manual_seed(seed)
    host = dt.hosts.TwoTower(image_encoder(), TextEncoder(pairs.vocabulary))
    loss = {
        view: dt.KLRobustLoss(RHO, estimator=dt.LogMovingAverage(size, gamma=GAMMA)) for view in host.views
    }
    objective = dt.Objective(host, dt.ConstantTemperature(TAU), loss)
    optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(objective.param_groups(lr=LR)), objective)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for index in torch.randperm(N).split(BATCH):
            objective(pairs.images[index], pairs.texts[index], index=numbers[index]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return objective


def go_on(objective: dt.Objective, image: Tensor, text: Tensor, numbers: Tensor) -> None:
    """More epochs for the averages alone, over features that stay."""
    still = dt.hosts.TwoTower(torch.nn.Identity(), torch.nn.Identity())
    for _ in range(STILL):
        for index in torch.randperm(N).split(BATCH):
            for view, r in still(image[index], text[index]).items():
                estimator = objective.losses[view].estimator
                estimator.propose(numbers[index], F.log_mean_exp(r.margins / TAU, r.mask), r.valid)
                estimator.commit()


def measure(pairs: Pairs, objective: dt.Objective, numbers: Tensor) -> dict[str, float]:
    """Errors of the averages of a model that is held still, and of the gradient that they weigh; retrieval."""
    host = objective.host.eval()
    rows = host(pairs.images, pairs.texts)
    go_on(objective, *(r.features.detach() for r in rows.values()), numbers)
    exact, weighted, errors = [], [], []
    for view, r in rows.items():
        log_g = F.log_mean_exp(r.margins / TAU, r.mask)
        log_u = objective.losses[view].estimator.log_u[numbers]
        errors.append(log_u - log_g.detach())
        exact.append(log_g.mean())
        weighted.append((log_g - log_u).exp().mean())
    wanted, found = (_gradient(torch.stack(side).mean(), host) for side in (exact, weighted))
    shared = torch.bincount(numbers)[numbers] > 1
    with torch.no_grad():
        recall = pairs.recall(host)
    return {
        "shared": 100 * float(shared.double().mean()),
        "log_u": float(torch.cat(errors).square().mean().sqrt()),
        "gradient": 100 * float((found - wanted).norm() / wanted.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(found, wanted, dim=0)),
        "recall": recall,
    }


def _gradient(loss: Tensor, host: torch.nn.Module) -> Tensor:
    found = torch.autograd.grad(loss, list(host.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def study(seeds: list[int]) -> list[dict[str, Any]]:
    """One entry per table: its size, and what was measured with each seed."""
    pairs = Pairs()
    tables = [(0.0, N, torch.arange(N))]
    for per_entry in PER_ENTRY:
        table = SampleTable(math.ceil(N / per_entry))
        tables.append((per_entry, table.size, table.numbers(pairs.keys)))
    results: list[dict[str, Any]] = []
    for per_entry, size, numbers in tables:
        runs = []
        for seed in seeds:
            print(f"n / size {per_entry or 'exact'}, seed {seed} ...", file=sys.stderr)
            runs.append(measure(pairs, train(pairs, numbers, size, seed), numbers))
        first = results[0]["runs"] if results else runs
        expected = 100 * SampleTable(size).colliding_share(N) if per_entry else 0.0
        for run, base in zip(runs, first, strict=True):
            run |= {"expected": expected, "difference": run["recall"] - base["recall"]}
        results.append({"per_entry": per_entry, "size": size, "runs": runs})
    return results


def markdown(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds."""
    lines = [["n / size", *(title for title, _ in COLUMNS.values())]]
    lines.append(["---:"] * len(lines[0]))
    for result in results:
        cells = []
        for name, (_, digits) in COLUMNS.items():
            values = [run[name] for run in result["runs"]]
            alike = len(set(values)) == 1
            cells.append(f"{values[0]:.{digits}f}" if alike else cell(values, digits=digits))
        lines.append([f"{result['per_entry']:g}" if result["per_entry"] else "exact", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    default = Path(__file__).resolve().parent / "results" / "hash_collisions.json"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = study(options.seeds)
    print(table := markdown(results))
    setting = {"n": N, "batch": BATCH, "epochs": EPOCHS, "still": STILL, "tau": TAU, "rho": RHO}
    setting |= {"gamma": GAMMA, "lr": LR, "seeds": options.seeds}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    saved = {"machine": machine(), "setting": setting, "table": table.splitlines(), "results": results}
    options.out.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
