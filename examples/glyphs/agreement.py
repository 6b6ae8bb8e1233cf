"""A table of how similar the temperatures of similar concepts are."""

import torch
from torch import Tensor

from dro_temp.evaluation import neighbour_consistency, semantic_consistency
from dro_temp.functional.ranks import places, rank_correlation

from .data import Pairs
from .training import Run

HEADER = [
    "temperatures of", "std within", "std between", "ICC", "p", "ratio", "neighbours by embedding", "by pixels",
]  # fmt: skip


def letters(pairs: Pairs) -> tuple[Tensor, list[str]]:
    """Each name's letter (the name without its marks) as a number, and the list of letters."""
    plain = [name.partition(" with ")[0] for name in pairs.names]
    called = sorted(set(plain))
    place = {name: i for i, name in enumerate(called)}
    return torch.tensor([place[name] for name in plain]), called


def _mean_pixels(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Pixels of each image, and their mean over the images of each name."""
    pixels = pairs.images.flatten(1).float()
    total = torch.zeros(len(pairs.names), pixels.shape[1]).index_add_(0, pairs.name_index, pixels)
    return pixels, total / pairs.name_index.bincount()[:, None]


def report(began: Run, ended: Run, split: str, k: int) -> str:
    """The table, before and after training, and the correlation between images and their names."""
    rows = [*_rows(began, split, ", before training", k), *_rows(ended, split, "", k)]
    before, after = (_images_and_names(run, split) for run in (began, ended))
    return (
        f"{_table(rows)}\n\nAn image and its name, whose temperatures are of two networks: rank correlation "
        f"{after:.2f}; before training {before:.2f}."
    )


def _images_and_names(run: Run, split: str) -> float:
    tau, of = run.temperatures(split), run.data.splits[split].name_index
    sides = places(tau["image"]), places(tau["text"][of])
    value = float(rank_correlation(*sides, torch.ones(len(of), dtype=torch.float64)))
    return round(value, 2) + 0.0  # no "-0.00"


def _rows(run: Run, split: str, when: str, k: int) -> list[list[str]]:
    """Images, by name, and names, by letter."""
    pairs = run.data.splits[split]
    tau, embedding = run.temperatures(split), run.embed(pairs)
    concept = {"image": pairs.name_index, "text": letters(pairs)[0]}
    return [
        [title + when, *_cells(tau[view], concept[view], (embedding[view], pixels), k)]
        for (view, title), pixels in zip(
            (("image", "images, by name"), ("text", "names, by letter")), _mean_pixels(pairs), strict=True
        )
    ]


def _cells(tau: Tensor, concept: Tensor, features: tuple[Tensor, ...], k: int) -> list[str]:
    own = semantic_consistency(tau, concept)
    near = [neighbour_consistency(tau, x, concept=concept, k=k) for x in features]
    return [
        f"{own.within_std:.1e}", f"{own.between_std:.1e}", f"{own.icc:.2f} [{own.low:.2f}, {own.high:.2f}]",
        f"{own.p_value:.2g}", f"{own.ratio:.2f}", *(f"{x.correlation:.2f} [{x.low:.2f}, {x.high:.2f}]" for x in near),
    ]  # fmt: skip


def _table(rows: list[list[str]]) -> str:
    """The table as Markdown, aligned so that it reads well as plain text."""
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = [HEADER, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    )
