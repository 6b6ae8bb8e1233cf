"""The plots of the study's page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.studies.common.summary import Summary
from benchmarks.studies.real_language.cache import HALF, Tokens

# Okabe and Ito's palette, readable by colour-blind people.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
    "#8c564b",
    "#F0E442",
)


def draw_forest(summary: Summary, out: Path, reference: str = "constant per kind") -> None:
    """Differences of NLL and of ECE to the constants of each kind, with their intervals."""
    sheet = Figure(figsize=(10, 0.27 * len(summary.methods) + 1.2), dpi=110, layout="constrained")
    for axes, metric, unit in zip(
        sheet.subplots(1, 2, sharey=True), ("nll", "ece"), ("nats", "points"), strict=True
    ):
        shown = {m: summary.minus(m, reference, metric) for m in summary.methods if m != reference}
        drawn = {m: d for m, d in shown.items() if d is not None}
        for y, d in enumerate(drawn.values()):
            colour = COLOURS[0] if d.interval[1] < 0 else COLOURS[1] if d.interval[0] > 0 else COLOURS[7]
            axes.plot(d.interval, (y, y), color=colour, lw=1.6)
            axes.plot(d.mean, y, "o", color=colour, ms=4)
        axes.set_yticks(range(len(drawn)), list(drawn))
        axes.axvline(0.0, color="0.3", lw=1.0)
        axes.set_xscale("symlog", linthresh=0.03 if metric == "nll" else 3.0)
        axes.set_xlabel(f"{metric.upper()} minus {reference} ({unit})", fontsize=8)
        _tidy(axes)
    axes.invert_yaxis()
    _save(sheet, out)


def draw_borders(tokens: Tokens, tau: Tensor, out: Path, width: int = 5) -> None:
    """Mean temperature by position around the border, one panel for each kind that comes second."""
    kinds = list(dict.fromkeys(pair.split(" > ")[1] for pair in tokens.kinds))
    kinds.sort(key=["prose", "code", "questions", "tables", "german"].index)
    sheet = Figure(figsize=(14, 3.2), dpi=110, layout="constrained")
    relative = tokens.position - HALF
    places = torch.arange(-60, 120, width)
    for axes, second in zip(sheet.subplots(1, len(kinds), sharey=True), kinds, strict=True):
        for colour, first in zip(COLOURS, kinds, strict=False):
            if first == second:
                continue
            of = tokens.kind == tokens.kinds.index(f"{first} > {second}")
            means = [
                float(tau[of & (relative >= p) & (relative < p + width)].mean()) for p in places.tolist()
            ]
            axes.plot(places + width / 2, means, color=colour, lw=1.2, label=first)
        axes.axvline(0.0, color="0.3", lw=1.0)
        axes.set_title(f"then {second}", fontsize=10)
        axes.set_xlabel("tokens after the border", fontsize=8)
        axes.legend(title="first", fontsize=7, title_fontsize=7, frameon=False)
        _tidy(axes)
    sheet.axes[0].set_ylabel("mean τ", fontsize=8)
    _save(sheet, out)


def draw_sampling(summary: Summary, out: Path) -> None:
    """Quality against diversity: one line for each method, one point for each setting."""
    sheet = Figure(figsize=(12.5, 4.2), dpi=110, layout="constrained")
    panels = (
        ("distinct_2_code", "parses", "distinct-2 of code", "code that parses (%)"),
        ("distinct_2_code", "likelihood_code", "distinct-2 of code", "mean log-likelihood of code"),
        ("distinct_2_prose", "likelihood_prose", "distinct-2 of prose", "mean log-likelihood of prose"),
    )
    methods = list(dict.fromkeys(summary.methods))
    for axes, (x, y, right, up) in zip(sheet.subplots(1, 3), panels, strict=True):
        for colour, method in zip(COLOURS, methods, strict=False):
            points: Sequence[dict[str, Any]] = [r for r in summary.records if r["method"] == method]
            points = sorted(points, key=lambda r: r[x])
            style = "-" if method.startswith("TempNet") else "--"
            up_to = [r[y][0] if isinstance(r[y], list) else r[y] for r in points]
            axes.plot([r[x] for r in points], up_to, style, marker="o", ms=3, lw=1.3, color=colour,
                      label=method)  # fmt: skip
        axes.set_xlabel(right, fontsize=8)
        axes.set_ylabel(up, fontsize=8)
        _tidy(axes)
    sheet.axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    _save(sheet, out)


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _save(sheet: Figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(out)
    print(f"saved {out}", file=sys.stderr)
