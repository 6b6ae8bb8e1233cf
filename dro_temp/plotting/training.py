"""What training did: curves of metrics, distributions of temperatures."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dro_temp._checks import check_count, check_kind
from dro_temp._typing import PerRow
from dro_temp.plotting._style import COLOURS, DASHES, Figure, check_not_empty, finite, new_figure, tidy


def training_curves(runs: Mapping[str, Mapping[str, Sequence[float]]], *, step: str = "epoch") -> Figure:
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
        axes.xaxis.get_major_locator().set_params(integer=True)
        tidy(axes, xlabel=step, ylabel=metric)
    columns = min(4, len(handles))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def temperature_histogram(tau: Mapping[str, PerRow], *, bins: int = 40) -> Figure:
    r"""Distribution of the temperatures under each label, on common bins.

    Args:
        tau: temperatures by label, [n] each, > 0; lengths may differ, since shares are shown and not counts.
            A label with one temperature only (`LearnableTemperature`) becomes a vertical line.
        bins: number of bins, from the lowest to the highest temperature of the labels that have several.

    Returns:
        A figure with one pair of axes.

    Raises:
        ValueError: no label, no temperature under a label, or temperatures that are not finite.

    Example:
        >>> figure = temperature_histogram({"images": 0.1 + 0.01 * torch.randn(500)})
        >>> figure.axes[0].get_xlabel()
        'temperature τ'
    """
    check_kind("tau", tau, Mapping, "Pass {label: values}.")
    check_not_empty("label", tau)
    check_count("bins", bins)
    values = {label: finite(f"temperatures of {label!r}", x) for label, x in tau.items()}
    single = {label for label, x in values.items() if float(x.max() - x.min()) <= 1e-6 * float(x.abs().max())}
    spread = [x for label, x in values.items() if label not in single]
    low = min((float(x.min()) for x in spread), default=0.0)
    high = max((float(x.max()) for x in spread), default=1.0)
    figure = new_figure(7.0, 3.8)
    axes = figure.subplots()
    for i, (label, x) in enumerate(values.items()):
        colour = COLOURS[i % len(COLOURS)]
        if label in single:
            label = f"{label}: {float(x[0]):#.3g}"
            axes.axvline(float(x[0]), color=colour, linestyle="--", linewidth=2, label=label)
            continue
        axes.hist(
            x.numpy(), bins=bins, range=(low, high), weights=[100.0 / len(x)] * len(x), histtype="stepfilled",
            facecolor=(colour, 0.25), edgecolor=colour, linestyle=DASHES[i % len(DASHES)], linewidth=1.8,
            label=f"{label}: {float(x.mean()):#.3g} ± {float(x.std(correction=0)):#.2g}",
        )  # fmt: skip
    axes.margins(x=0.03)
    tidy(axes, xlabel="temperature τ", ylabel="share of inputs (%)")
    # Above the axes, where no bar can be behind it.
    columns, title = min(2, len(values)), "mean ± standard deviation"
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, title=title)
    return figure


def temperature_history(
    history: Sequence[tuple[int, Mapping[str, PerRow]]], *, bins: int = 60, step: str = "step"
) -> Figure:
    """A heat map per view: the distribution of its temperatures at each step of training.

    A column is the histogram of one step, as percentages of the inputs; lines are the median and the quantiles at
    5 % and 95 %. Shades grow with the square root of the share: otherwise a first step with one temperature would
    leave all others white.

    Args:
        history: pairs of a step and the temperatures of each view at it, [n] each, steps ascending; views are the
            same at all steps, lengths may differ.
        bins: number of bins, from the lowest to the highest temperature of all.
        step: unit of the steps, the label of the horizontal axis.

    Returns:
        A figure with a panel per view, and a colour bar.

    Raises:
        ValueError: no step, steps that do not ascend, other views at one step than at another, or temperatures that
            are not finite.
        TypeError: `bins` is not an int.

    Example:
        >>> tau = lambda step: {"image": 0.1 + 0.01 * step * torch.rand(50), "text": 0.1 + 0.02 * step * torch.rand(50)}
        >>> figure = temperature_history([(step, tau(step)) for step in range(5)])
        >>> [axes.get_title(loc="left") for axes in figure.axes][:2]
        ['image', 'text']
    """
    check_count("bins", bins)
    check_kind("history", history, Sequence, "Pass [(0, {view: tau}), (100, {view: tau})], say.")
    check_not_empty("step", history)
    steps, views = _steps_and_views(history)
    values = {view: [finite(f"temperatures of {view!r}", tau[view]) for _, tau in history] for view in views}
    everything = torch.cat([x for columns in values.values() for x in columns])
    low, high = float(everything.min()), float(everything.max())
    room = 0.02 * (high - low) or 0.05 * abs(high) or 1.0
    edges = torch.linspace(low - room, high + room, bins + 1, dtype=torch.float64)
    shares = {
        view: torch.stack([100.0 * torch.histogram(x, edges).hist / len(x) for x in columns], dim=1)
        for view, columns in values.items()
    }
    at = torch.tensor(steps, dtype=torch.float64)
    # A column reaches halfway to its neighbours.
    half = 0.5 * at.diff() if len(at) > 1 else torch.tensor([0.5], dtype=torch.float64)
    sides = torch.cat([at[:1] - half[:1], at[:-1] + 0.5 * at.diff(), at[-1:] + half[-1:]])
    figure = new_figure(3.9 * len(views) + 0.8, 3.6)
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    norm = PowerNorm(0.5, vmin=0, vmax=max(float(share.max()) for share in shares.values()))
    panels = figure.subplots(1, len(views), squeeze=False, sharey=True)[0]
    for i, (axes, view) in enumerate(zip(panels, views, strict=True)):
        colours = LinearSegmentedColormap.from_list("shares", ["white", COLOURS[i % len(COLOURS)]])
        mesh = axes.pcolormesh(
            sides.numpy(), edges.numpy(), shares[view].numpy(), norm=norm, cmap=colours, rasterized=True
        )
        bar = figure.colorbar(mesh, ax=axes, pad=0.02)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.set_title("%", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(axis="x", integer=True)
        for share, line, label in ((0.05, ":", "5 % and 95 %"), (0.5, "-", "median"), (0.95, ":", None)):
            quantile = [float(x.quantile(share)) for x in values[view]]
            axes.plot(steps, quantile, color="black", linestyle=line, linewidth=1.2, label=label)
        axes.set_title(view, loc="left", fontsize=11, weight="bold")
        axes.set_xlabel(step)
    panels[0].set_ylabel("temperature τ")
    panels[0].legend(loc="best", fontsize=8, framealpha=0.9)
    return figure


def _steps_and_views(history: Sequence[tuple[int, Mapping[str, PerRow]]]) -> tuple[list[int], list[str]]:
    for pair in history:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], Mapping)):
            raise TypeError(
                f"expected pairs of a step and the temperatures of each view, received {type(pair).__name__}. Pass "
                "[(0, {view: tau}), (100, {view: tau})], say."
            )
    steps, views = [number for number, _ in history], list(history[0][1])
    check_not_empty("view", views)
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError(
            f"expected steps that ascend, received {steps[:8]}. Sort the history, and record each step once."
        )
    for number, tau in history:
        if set(tau) != set(views):
            raise ValueError(
                f"expected the views {views} at every step, received {list(tau)} at step {number}. Record them all."
            )
    return steps, views
