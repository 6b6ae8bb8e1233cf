"""Distributions of temperatures."""

from collections.abc import Mapping

from dro_temp._checks import check_count, check_kind
from dro_temp._typing import PerRow
from dro_temp.plotting._style import COLOURS, DASHES, Figure, check_not_empty, finite, new_figure, tidy


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
        >>> import torch
        >>> from dro_temp.plotting import temperature_histogram
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
    axes.set_xlabel("temperature τ")
    axes.set_ylabel("share of inputs (%)")
    axes.margins(x=0.03)
    tidy(axes)
    # Above the axes, where no bar can be behind it.
    columns, title = min(2, len(values)), "mean ± standard deviation"
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, title=title)
    return figure
