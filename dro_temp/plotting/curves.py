"""Training curves."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dro_temp._checks import check_kind
from dro_temp.plotting._style import COLOURS, DASHES, new_figure, refuse_empty, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def curves(runs: Mapping[str, Mapping[str, Sequence[float]]], *, step: str = "epoch") -> "Figure":
    """Training curves: one panel per metric, one line per run.

    Args:
        runs: numbers by label and metric, one per step from step 1 on. Metrics need not be the same for all
            labels; NaN leaves a gap, for example where validation was skipped.
        step: what the numbers are counted in, the label of the horizontal axis.

    Returns:
        A figure with one pair of axes per metric, in the order in which they first appear.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no run or no metric.

    Example:
        >>> from dro_temp.plotting import curves
        >>> figure = curves({"tempnet": {"loss": [2.0, 1.5], "R@1 (%)": [10.0, 20.0]}})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss', 'R@1 (%)']
    """
    check_kind("runs", runs, Mapping, "Pass {label: values}.")
    refuse_empty("run", runs)
    metrics = list(dict.fromkeys(metric for run in runs.values() for metric in run))
    refuse_empty("metric", metrics)
    columns = min(3, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = new_figure(3.1 * columns + 0.2, 2.7 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.06})
    for unused in grid.flat[len(metrics) :]:
        unused.remove()
    handles: dict[str, Any] = {}
    for axes, metric in zip(grid.flat, metrics, strict=False):
        for i, (label, run) in enumerate(runs.items()):
            if metric in run:
                handles[label] = _line(axes, run[metric], i)
        axes.set_xlabel(step)
        axes.set_ylabel(metric)
        axes.xaxis.get_major_locator().set_params(integer=True)
        tidy(axes)
    figure.legend(
        handles.values(), handles, loc="outside upper center", ncols=min(4, len(handles)), frameon=False
    )
    return figure


def _line(axes: "Axes", values: Sequence[float], number: int) -> Any:
    known = [(step, y) for step, y in enumerate(values, start=1) if not math.isnan(y)]
    (line,) = axes.plot(
        [step for step, _ in known],
        [y for _, y in known],
        color=COLOURS[number % len(COLOURS)],
        linestyle=DASHES[number % len(DASHES)],
        linewidth=1.8,
        # A single point has no line to be seen by.
        marker="o" if len(known) < 3 else None,
        markersize=4,
    )
    return line
