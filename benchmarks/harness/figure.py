"""Bar plots of the results."""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.case import Case
from benchmarks.harness.timing import ratios

# Okabe and Ito's palette, readable by colour-blind people.
OURS, THEIRS, FLOOR = "#0072B2", "#E69F00", "#999999"


def draw(title: str, cases: Sequence[Case], out: Path) -> None:
    """One row of panels per case: time on the left, memory on the right."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed; run: pip install matplotlib", file=sys.stderr)
        return
    cases = [case for case in cases if case.seconds or case.peaks]
    if not cases:
        return
    rows = [max(len(case.seconds), len(case.peaks)) for case in cases]
    sheet = Figure(figsize=(11, 1.5 + sum(rows) * 0.28 + len(rows) * 0.7), dpi=150, layout="constrained")
    sheet.suptitle(title)
    panels = sheet.subplots(len(cases), 2, squeeze=False, height_ratios=rows)
    for case, (left, right) in zip(cases, panels, strict=True):
        _times(left, case)
        _memory(right, case)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(out)
    print(f"saved {out}", file=sys.stderr)


def _times(axes, case: Case) -> None:
    if case.to not in case.seconds:
        axes.set_axis_off()
        return
    table = ratios(case.seconds, case.to)
    medians = [row["median"] for row in table.values()]
    spread = [[row["median"] - row["q1"] for row in table.values()]]
    spread.append([row["q3"] - row["median"] for row in table.values()])
    bars = axes.barh(list(table), medians, xerr=spread, color=_colours(table, case), error_kw={"lw": 0.8})
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=7)
    axes.axvline(1.0, color="0.3", lw=0.8, ls="--")
    _tidy(axes, case, f"time / {case.to}")


def _memory(axes, case: Case) -> None:
    if not case.peaks:
        axes.set_axis_off()
        return
    scratch = {name: max(case.scratch(name) or 0.0, 0.1) for name in case.peaks}
    bars = axes.barh(list(scratch), list(scratch.values()), color=_colours(scratch, case))
    axes.bar_label(bars, fmt="%.3g", padding=4, fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")  # within one decade they would overlap
    _tidy(axes, case, "scratch memory of a step (MB)")


def _colours(names, case: Case) -> list[str]:
    def colour(name: str) -> str:
        if name == case.to or name.startswith("floor"):
            return FLOOR
        return OURS if name.startswith("dro_temp") else THEIRS

    return [colour(name) for name in names]


def _tidy(axes, case: Case, label: str) -> None:
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(case.label, fontsize=9)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
