"""Two rows of panels, one column for each set of images: accuracies, and what identifies wrong labels."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.studies.common.summary import Summary
from benchmarks.studies.wrong_labels.methods import BASELINE, BOUND

BALL, SMOOTHED, RISING = "best case in a KL ball", "the same, smoothed labels", "the same, rho rising"
# Okabe and Ito's palette, readable by colour-blind people; a method has the same colour in every panel.
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
#: Detectors of wrong labels: label, method and metric.
DETECTORS = {
    f"weight: {BALL}": (BALL, "auroc_weight"),
    f"weight: {SMOOTHED}": (SMOOTHED, "auroc_weight"),
    "loss: cross-entropy": ("cross-entropy", "auroc_loss"),
    "τ: likelihood, one for each sample": ("likelihood, one for each sample", "auroc_tau"),
    "τ: robust, TempNet": ("robust, TempNet", "auroc_tau"),
    "τ: robust, optimal": ("robust, optimal", "auroc_tau"),
}


def draw(summaries: Mapping[str, Mapping[float, Summary]], out: Path) -> None:
    """Draw the sets of images that were trained with at least two shares of wrong labels."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed; run: pip install matplotlib", file=sys.stderr)
        return
    drawn = {data: dict(sorted(levels.items())) for data, levels in summaries.items() if len(levels) > 1}
    if not drawn:
        return
    sheet = Figure(figsize=(5.2 * len(drawn) + 2.6, 7.5), dpi=110, layout="constrained")
    panels = sheet.subplots(2, len(drawn), squeeze=False)
    for column, (data, levels) in enumerate(drawn.items()):
        _accuracies(panels[0, column], data, levels)
        _detectors(panels[1, column], {noise: each for noise, each in levels.items() if noise > 0})
    for row in panels:
        row[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(out)
    print(f"saved {out}", file=sys.stderr)


def _accuracies(axes: Any, data: str, levels: Mapping[float, Summary]) -> None:
    """Accuracy minus label smoothing's, paired by seed, with its standard error."""
    for method, colour in COLOURS.items():
        gains = {noise: summary.minus(method, BASELINE, "accuracy") for noise, summary in levels.items()}
        points = {noise: (gain.mean, gain.std_error) for noise, gain in gains.items() if gain is not None}
        _line(axes, points, method, colour, dashed=method == BOUND)
    axes.axhline(0.0, color="0.3", lw=1.0)
    axes.set_title(data, fontsize=10)
    axes.set_ylabel(f"accuracy minus {BASELINE}'s (points)", fontsize=8)
    _tidy(axes)


def _detectors(axes: Any, levels: Mapping[float, Summary]) -> None:
    for label, (method, signal) in DETECTORS.items():
        records = {noise: s[method] for noise, s in levels.items() if method in s.methods}
        points = {
            noise: (record[signal][0], record[signal][1] / record["seeds"] ** 0.5)
            for noise, record in records.items()
            if signal in record
        }
        _line(axes, points, label, COLOURS[method])
    axes.axhline(0.5, color="0.3", lw=1.0)
    axes.set_ylim(0.0, 1.02)
    axes.set_ylabel("AUROC as a detector of wrong labels", fontsize=8)
    axes.set_xlabel("labels redrawn (%)", fontsize=8)
    _tidy(axes)


def _line(
    axes: Any, points: Mapping[float, tuple[float, float]], label: str, colour: str, *, dashed: bool = False
) -> None:
    """Means and standard errors over shares of redrawn labels."""
    shares = [100 * noise for noise in points]
    means, errors = ([point[k] for point in points.values()] for k in (0, 1))
    style = {"ls": "--"} if dashed else {}
    axes.errorbar(
        shares, means, errors, color=colour, label=label, marker="o", ms=3.5, lw=1.4, capsize=2, **style
    )


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.92", linewidth=0.8)
