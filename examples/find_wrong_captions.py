"""Train two towers in spite of wrong captions, and find them. Glyphs and their names; no downloads."""

import math
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from glyphs.model import TextEncoder, as_float, image_encoder
from matplotlib.figure import Figure
from rich.progress import track

import dro_temp as dt
from dro_temp.evaluation import retrieval_recall


@dataclass(frozen=True)
class Options:
    """Glyphs in several fonts with their Unicode names, some with the name of another glyph; tested in other fonts."""

    size: int = 6000  # training pairs
    wrong: float = 0.3  # share of the training captions that are shuffled among themselves
    rho: float = 0.5  # last radius: a share of about 1 - exp(-rho) of the pairs is left out
    tau: float = 0.1  # temperature
    epochs: int = 10  # passes over the pairs
    batch: int = 128  # pairs per step
    lr: float = 4e-3  # learning rate of AdamW
    seed: int = 0  # seed of the wrong captions and the networks
    out: Path = Path("runs/wrong_captions")  # folder for the list and the picture
    quick: bool = False  # two epochs of 1,000 pairs


def trained(o: Options, recipe: str, images: torch.Tensor, texts: torch.Tensor, words: int) -> dt.Objective:
    torch.manual_seed(o.seed)
    host, n = dt.hosts.TwoTower(image_encoder(), TextEncoder(words)), len(images)
    steps = o.epochs * (n // o.batch)
    if recipe == "sogclr":
        objective = dt.recipes.sogclr(host, n, tau=o.tau)
    else:
        objective = dt.recipes.noisy_pairs(host, n, tau=o.tau, rho=o.rho, steps=steps)
    base = torch.optim.AdamW(objective.param_groups(lr=o.lr, weight_decay=0.02))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, steps)
    optimizer = dt.CompositionalOptimizer(base, objective)
    for _ in track(range(o.epochs), recipe):
        for index in torch.randperm(n)[: n - n % o.batch].split(o.batch):
            objective(as_float(images[index]), texts[index], index=index).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return objective.eval()


@torch.no_grad()
def recall(objective: dt.Objective, test: dt.datasets.GlyphCaptions, tokens: torch.Tensor) -> float:
    host: dt.hosts.TwoTower = objective.host
    images = torch.cat([host.encode_image(as_float(part)) for part in test.images.split(512)])
    names = torch.cat([host.encode_text(part) for part in tokens.split(512)])
    return float(retrieval_recall(images, names, test.name_index, torch.arange(len(names)), ks=(1,))[1])


def run(o: Options) -> None:
    train = dt.datasets.GlyphCaptions("train", size=o.size)
    test = dt.datasets.GlyphCaptions("test_seen", size=o.size)
    tokenizer = dt.datasets.WordTokenizer.fit(train.captions)
    torch.manual_seed(o.seed)
    shuffled = torch.randperm(o.size)[: math.floor(o.wrong * o.size)]
    name = train.name_index.clone()
    name[shuffled] = name[shuffled[torch.randperm(len(shuffled))]]
    wrong, texts = name != train.name_index, tokenizer(train.names)[name]
    for recipe in ("sogclr", "noisy_pairs"):
        objective = trained(o, recipe, train.images, texts, len(tokenizer.vocabulary))
        print(
            f"{recipe}: {recall(objective, test, tokenizer(test.names)):.1f} % of the test images find their name first"
        )
    risk = objective.risks["all"]
    suspects = risk.suspects()
    o.out.mkdir(parents=True, exist_ok=True)
    risk.write_csv(o.out / "suspects.csv")
    first = torch.tensor([s.sample for s in suspects])[: int(wrong.sum())]
    share, hundred = (100 * wrong[part].double().mean() for part in (first, first[:100]))
    print(f"{wrong.sum()} of {o.size} captions are wrong")
    print(f"of the first 100 suspects {hundred:.1f} % are, of the first {len(first)} {share:.1f} %")
    sheet = Figure(figsize=(11, 5), layout="constrained")
    for axes, i in zip(sheet.subplots(2, 8).flat, first.tolist(), strict=False):
        axes.imshow(train.images[i].numpy(), cmap="gray")
        axes.set_title(textwrap.fill(f"given: {train.names[name[i]]}", 20), fontsize=6)
        axes.set_xlabel(textwrap.fill(f"is: {train.captions[i]}", 20), fontsize=6)
        axes.set(xticks=[], yticks=[])
    sheet.savefig(o.out / "suspects.png")


if __name__ == "__main__":
    options = tyro.cli(Options, prog="find_wrong_captions.py", description=__doc__)
    run(replace(options, size=1000, epochs=2) if options.quick else options)
