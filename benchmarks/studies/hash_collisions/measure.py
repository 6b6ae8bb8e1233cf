"""The cost of samples that share an entry of a `SampleTable`: estimates, gradients and retrieval by table size.

Two towers are trained on glyph-caption pairs with moving averages whose entries are indices in the data set (exact) or
hashes of keys, in tables with n / size = 0.1 to 8 samples per entry. All tables of one seed start from the same weights
and see the same batches. The model is then fixed for twenty epochs in which only the averages are updated, and the
gradient over the whole data set that they give is compared with the exact one.

  python -m benchmarks.studies.hash_collisions.measure [--seeds 0 1 2 3 4]     (three minutes of one core)
"""

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import dro_temp as dt
from benchmarks.studies.common.options import parser
from benchmarks.studies.common.summary import Summary, publish, summarise
from benchmarks.studies.common.tables import cell, markdown
from dro_temp import functional as F
from dro_temp.datasets import GlyphCaptions, SampleTable, WordTokenizer
from dro_temp.evaluation import retrieval_recall

TITLE = "Samples that share an entry of the moving averages: shares, gradient errors and R@1 in percent"
N, BATCH, EPOCHS, STILL = 1024, 64, 7, 20
TAU, RHO, GAMMA, LR = 0.1, 1.0, 0.5, 4e-3
EXACT = "exact"
PER_ENTRY = (0.1, 0.5, 1.0, 2.0, 8.0)
COLUMNS = {
    "shared": ("samples that share (%)", 1),
    "expected": ("expected (%)", 1),
    "log_u": ("error of log u", 3),
    "gradient": ("error of gradient (%)", 1),
    "cosine": ("cosine to exact", 4),
    "recall": ("R@1 (%)", 1),
}


class Pairs:
    """Training pairs with keys, and validation pairs of the same names in other fonts."""

    def __init__(self) -> None:
        from glyphs.model import as_float

        train, validation = (GlyphCaptions(split, size=N) for split in ("train", "val_seen"))
        tokenizer = WordTokenizer.fit(train.captions)
        self.vocabulary = len(tokenizer.vocabulary)
        self.images, self.texts = as_float(train.images), tokenizer(train.captions)
        self.keys = [f"{f}/U+{c:04X}" for f, c in zip(train.fonts, train.codepoints, strict=True)]
        self.validation, self.names = as_float(validation.images), tokenizer(validation.names)
        self.name_of = validation.name_index

    def recall(self, host: dt.hosts.TwoTower) -> float:
        """Mean R@1 of both directions, in percent."""
        image, text = host.encode_image(self.validation), host.encode_text(self.names)
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


def update_averages(objective: dt.Objective, image: Tensor, text: Tensor, numbers: Tensor) -> None:
    """More epochs for the averages alone, over fixed features."""
    still = dt.hosts.TwoTower(torch.nn.Identity(), torch.nn.Identity())
    for _ in range(STILL):
        for index in torch.randperm(N).split(BATCH):
            for view, r in still(image[index], text[index]).items():
                estimator = objective.losses[view].estimator
                estimator.propose(numbers[index], F.log_mean_exp(r.margins / TAU, r.mask), r.valid)
                estimator.commit()


def measure(pairs: Pairs, objective: dt.Objective, numbers: Tensor) -> dict[str, float]:
    """Errors of the averages of a fixed model and of the gradient that they weight, and its retrieval."""
    host = objective.host.eval()
    rows = host(pairs.images, pairs.texts)
    update_averages(objective, *(r.features.detach() for r in rows.values()), numbers)
    exact, weighted, errors = [], [], []
    for view, r in rows.items():
        log_g = F.log_mean_exp(r.margins / TAU, r.mask)
        log_u = objective.losses[view].estimator.log_u[numbers]
        errors.append(log_u - log_g.detach())
        exact.append(log_g.mean())
        weighted.append((log_g - log_u).exp().mean())
    true, estimated = (_gradient(torch.stack(side).mean(), host) for side in (exact, weighted))
    shared = torch.bincount(numbers)[numbers] > 1
    with torch.no_grad():
        recall = pairs.recall(host)
    return {
        "shared": 100 * float(shared.double().mean()),
        "log_u": float(torch.cat(errors).square().mean().sqrt()),
        "gradient": 100 * float((estimated - true).norm() / true.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(estimated, true, dim=0)),
        "recall": recall,
    }


def _gradient(loss: Tensor, host: torch.nn.Module) -> Tensor:
    gradients = torch.autograd.grad(loss, list(host.parameters()), retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def study(seeds: list[int]) -> list[dict[str, Any]]:
    """What was measured with each table and seed."""
    pairs, runs = Pairs(), []
    tables = {EXACT: (N, torch.arange(N))}
    for per_entry in PER_ENTRY:
        table = SampleTable(math.ceil(N / per_entry))
        tables[f"{per_entry:g}"] = (table.size, table.numbers(pairs.keys))
    for method, (size, numbers) in tables.items():
        expected = 0.0 if method == EXACT else 100 * SampleTable(size).colliding_share(N)
        for seed in seeds:
            print(f"n / size {method}, seed {seed} ...", file=sys.stderr)
            values = measure(pairs, train(pairs, numbers, size, seed), numbers)
            run = {"method": method, "seed": seed, "options": {"size": size}}
            runs.append({**run, **values, "expected": expected})
    return runs


def metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """All that was measured."""
    return {name: run[name] for name in COLUMNS}


def table(summary: Summary) -> str:
    """Mean and standard deviation over seeds; one number where all seeds agree."""
    header = ["n / size", *(title for title, _ in COLUMNS.values()), "R@1 less exact"]
    rows = []
    for record in summary.records:
        row = [record["method"], *(_cell(record[name], digits) for name, (_, digits) in COLUMNS.items())]
        difference = summary.minus(record["method"], EXACT, "recall")
        if record["method"] == EXACT:
            row.append("0.0")
        else:
            row.append("" if difference is None else cell((difference.mean, difference.std)))
        rows.append(row)
    return markdown(header, rows, words=0)


def _cell(statistic: Any, digits: int) -> str:
    return cell(statistic, digits=digits) if statistic[1] else f"{statistic[0]:.{digits}f}"


def main() -> None:
    """Run all tables with every seed."""
    options = parser(__doc__, "runs/hash_collisions", workers=None).parse_args()
    torch.set_num_threads(1)
    setting = {"n": N, "batch": BATCH, "epochs": EPOCHS, "still": STILL, "tau": TAU, "rho": RHO}
    summary = summarise(
        study(options.seeds),
        metrics,
        compared=("recall",),
        references=(EXACT,),
        about=setting | {"gamma": GAMMA, "lr": LR},
    )
    publish("hash_collisions", TITLE, f"{N}-pairs", summary, table(summary), options)


if __name__ == "__main__":
    main()
