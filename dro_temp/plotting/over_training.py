"""Training curves."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dro_temp._checks import check_kind
from dro_temp.plotting._style import COLOURS, DASHES, check_not_empty, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curves(runs: Mapping[str, Mapping[str, Sequence[float]]], *, step: str = "epoch") -> "Figure":
    """Training curves: one panel per metric, one line per run.

    Args:
        runs: numbers by label and metric, one per step from step 1 on. Metrics need not be the same for all
            labels; NaN leaves a gap, for example where validation was skipped.
        step: unit of the steps, the label of the horizontal axis.

    Returns:
        A figure with one pair of axes per metric, in the order in which they first appear.

    Raises:
        ValueError: no run or no metric.

    Example:
        >>> from dro_temp.plotting import training_curves
        >>> figure = training_curves({"tempnet": {"loss": [2.0, 1.5], "R@1 (%)": [10.0, 20.0]}})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['loss', 'R@1 (%)']
    """
    check_kind("runs", runs, Mapping, "Pass {label: values}.")
    check_not_empty("run", runs)
    metrics = list(dict.fromkeys(metric for run in runs.values() for metric in run))
    check_not_empty("metric", metrics)
    columns = min(3, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = new_figure(3.1 * columns + 0.2, 2.7 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.06})
    for unused in grid.flat[len(metrics) :]:
        unused.remove()
    handles: dict[str, Any] = {}
    for axes, metric in zip(grid.flat, metrics, strict=False):
        for i, (label, run) in enumerate(runs.items()):
            points = [(at, y) for at, y in enumerate(run.get(metric, ()), start=1) if not math.isnan(y)]
            if metric in run:
                (handles[label],) = axes.plot(
                    [at for at, _ in points], [y for _, y in points], linewidth=1.8, markersize=4,
                    color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i % len(DASHES)],
                    marker="o" if len(points) < 3 else None,  # a single point has no line
                )  # fmt: skip
        axes.set_xlabel(step)
        axes.set_ylabel(metric)
        axes.xaxis.get_major_locator().set_params(integer=True)
        tidy(axes)
    columns = min(4, len(handles))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=columns, frameon=False)
    return figure
