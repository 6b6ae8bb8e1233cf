"""Reliability diagrams: is a probability of 80 % right four times in five?"""

from collections.abc import Mapping

import torch

from dro_temp._checks import check_kind
from dro_temp.functional.reliability import Reliability
from dro_temp.plotting._style import COLOURS, Axes, Figure, check_not_empty, new_figure, tidy

_NORMAL = 1.96  # 95 %


def reliability_diagram(schemes: Mapping[str, Reliability]) -> Figure:
    """Accuracy against confidence by bins of confidence, with the share of the rows in each bin below.

    A bar reaches to the accuracy of a bin's rows. The red piece on top is the excess of their mean confidence over it
    (overconfident), the green piece its deficit (underconfident). The whisker is the 95 % interval of the accuracy
    (Wilson): where it crosses the diagonal, the bin shows no significant error. Bins of few rows have long ones, which
    the calibration error ignores.

    Args:
        schemes: bins by label, from `evaluate_classifier(...).reliability`, or from `evaluation.reliability` of
            your own confidences. Each may have its own bins.

    Returns:
        A figure with two pairs of axes for each label: accuracies above, counts below.

    Raises:
        ValueError: no label, or a label without rows.

    Example:
        >>> from dro_temp.evaluation import reliability
        >>> confidence = torch.rand(500)
        >>> figure = reliability_diagram({"sure": reliability(confidence, torch.rand(500) < confidence**2)})
        >>> [axes.get_ylabel() for axes in figure.axes]
        ['accuracy (%)', 'rows (%)']

    Source: Guo et al., arXiv 1706.04599, figure 1; Wilson 1927.
    """
    check_kind("schemes", schemes, Mapping, "Pass {label: values}.")
    check_not_empty("label", schemes)
    for label, bins in schemes.items():
        check_not_empty(f"row under {label!r}", [count for count in bins.count if count > 0])
    figure = new_figure(2.6 * len(schemes) + 0.9, 4.2)
    grid = figure.subplots(
        2, len(schemes), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": (3, 1)}
    )
    for above, below, (label, bins) in zip(*grid, schemes.items(), strict=True):
        _draw_accuracies(above, bins)
        width, total = 100.0 / len(bins.count), sum(bins.count)
        middle = [(b + 0.5) * width for b in range(len(bins.count))]
        below.bar(middle, [100 * count / total for count in bins.count], 0.94 * width, color="0.55")
        tidy(below, xlabel="confidence (%)")
        above.set_title(f"{label}\nECE {100 * bins.error:.1f} %", fontsize=10)
    grid[0, 0].set_ylabel("accuracy (%)")
    grid[1, 0].set_ylabel("rows (%)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    columns = min(4, 2 * len(schemes))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _draw_accuracies(axes: Axes, bins: Reliability) -> None:
    count, confidence, right = torch.tensor([bins.count, bins.confidence, bins.correct], dtype=torch.float64)
    filled, width = (count > 0).nonzero()[:, 0], 100.0 / len(count)
    count, middle = count[filled], ((filled + 0.5) * width).numpy()
    share, excess = right[filled] / count, (confidence[filled] - right[filled]) / count
    lower = 100 * (share + excess.clamp(max=0)).numpy()
    axes.bar(middle, lower, 0.94 * width, color=COLOURS[5], label="accuracy")
    for label, colour, sign in (("overconfident", COLOURS[1], 1), ("underconfident", COLOURS[2], -1)):
        gaps = 100 * (sign * excess).clamp(min=0).numpy()
        axes.bar(middle, gaps, 0.94 * width, bottom=lower, color=(colour, 0.55), label=label)
    # Wilson's interval; unlike the plain one it is not empty where all rows are right.
    z = _NORMAL**2 / count
    half = (share * (1 - share) * z + z * z / 4).sqrt()
    low, high = (100 * ((share + z / 2 + side) / (1 + z)).clamp(0, 1).numpy() for side in (-half, half))
    axes.vlines(middle, low, high, color="0.25", linewidth=1.1, label="95 % interval")
    axes.plot([0, 100], [0, 100], color="0.4", linestyle="--", linewidth=1.0)
    tidy(axes, xlim=(0, 100), ylim=(0, 100), xticks=(0, 25, 50, 75))
