"""Two rows of panels, one column for each set of images: who learns, and what tells wrong labels."""

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wrong_labels.arms import BASELINE, BOUND
from wrong_labels.tables import by_arm

BALL, SMOOTHED, RISING = "best case in a KL ball", "the same, smoothed labels", "the same, rho rising"
# Okabe and Ito's, readable by colour-blind people; an arm has its colour in every panel.
COLOURS = {
    "cross-entropy": "#000000",
    "generalised cross-entropy": "#F0E442",
    BALL: "#56B4E9",
    SMOOTHED: "#0072B2",
    RISING: "#009E73",
    "robust, TempNet": "#D55E00",
    "robust, optimal": "#E69F00",
    "likelihood, one for each sample": "#CC79A7",
    BOUND: "#999999",
}
#: What tells a wrong label: the arm, and the signal.
TELL = {
    f"weight: {BALL}": (BALL, "auroc_weight"),
    f"weight: {SMOOTHED}": (SMOOTHED, "auroc_weight"),
    "loss: cross-entropy": ("cross-entropy", "auroc_loss"),
    "τ: likelihood, one for each sample": ("likelihood, one for each sample", "auroc_tau"),
    "τ: robust, TempNet": ("robust, TempNet", "auroc_tau"),
    "τ: robust, optimal": ("robust, optimal", "auroc_tau"),
}


def draw(found: Mapping[str, Mapping[float, Mapping[str, Any]]], out: Path) -> None:
    """Sets of images with at least two shares of wrong labels."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed; run: pip install matplotlib", file=sys.stderr)
        return
    drawn = {data: dict(sorted(levels.items())) for data, levels in found.items() if len(levels) > 1}
    if not drawn:
        return
    sheet = Figure(figsize=(5.2 * len(drawn) + 2.6, 7.5), dpi=110, layout="constrained")
    panels = sheet.subplots(2, len(drawn), squeeze=False)
    for column, (data, levels) in enumerate(drawn.items()):
        runs = {noise: by_arm(level["tests"]) for noise, level in levels.items()}
        _learned(panels[0, column], data, runs)
        _told(panels[1, column], {noise: each for noise, each in runs.items() if noise > 0})
    for row in panels:
        row[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(out)
    print(f"saved {out}", file=sys.stderr)


def _learned(axes: Any, data: str, runs: Mapping[float, Any]) -> None:
    """Accuracy minus label smoothing's, paired by seed, with its standard error."""
    for arm, colour in COLOURS.items():
        gains = {}
        for noise, of in runs.items():
            if arm in of and BASELINE in of:
                gains[noise] = [
                    a["accuracy"] - b["accuracy"] for a, b in zip(of[arm], of[BASELINE], strict=True)
                ]
        _line(axes, gains, arm, colour, dashed=arm == BOUND)
    axes.axhline(0.0, color="0.3", lw=1.0)
    axes.set_title(data, fontsize=10)
    axes.set_ylabel(f"accuracy minus {BASELINE}'s (points)", fontsize=8)
    _tidy(axes)


def _told(axes: Any, runs: Mapping[float, Any]) -> None:
    for label, (arm, signal) in TELL.items():
        values = {
            noise: [m[signal] for m in of[arm]]
            for noise, of in runs.items()
            if arm in of and signal in of[arm][0]
        }
        _line(axes, values, label, COLOURS[arm])
    axes.axhline(0.5, color="0.3", lw=1.0)
    axes.set_ylim(0.0, 1.02)
    axes.set_ylabel("AUROC as a detector of wrong labels", fontsize=8)
    axes.set_xlabel("labels redrawn (%)", fontsize=8)
    _tidy(axes)


def _line(
    axes: Any, values: Mapping[float, list[float]], label: str, colour: str, *, dashed: bool = False
) -> None:
    shares = [100 * noise for noise in values]
    means = [statistics.mean(each) for each in values.values()]
    errors = [statistics.stdev(v) / len(v) ** 0.5 if len(v) > 1 else 0.0 for v in values.values()]
    style = {"ls": "--"} if dashed else {}
    axes.errorbar(
        shares, means, errors, color=colour, label=label, marker="o", ms=3.5, lw=1.4, capsize=2, **style
    )


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.92", linewidth=0.8)
