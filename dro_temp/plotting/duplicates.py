"""Temperature against the number of near-duplicates."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from dro_temp._checks import check_count, check_several
from dro_temp._typing import PerRow
from dro_temp.functional.ranks import spearman
from dro_temp.plotting._style import COLOURS, finite, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 3000  # more are one cloud


def temperature_by_duplicates(
    tau: PerRow,
    *,
    count: Int[Tensor, "n"] | None = None,
    concept: Int[Tensor, "n"] | None = None,
    resamples: int = 1000,
) -> "Figure":
    r"""Temperatures of items that have many near-duplicates, and of those that have none.

    A box per power of two of the count holds the middle half, its whiskers 5 % and 95 %; the line joins the medians.
    The title gives Spearman's rank correlation r with a 95 % bootstrap interval. With `concept`, whole concepts are
    resampled, which is the honest choice where items of one concept have alike temperatures; with `count`, items.

    Args:
        tau: one temperature per item, [n].
        count: number of others that are nearly the same, for example `evaluation.near_duplicates(features)`, or
            the number of a caption's images.
        concept: number of each item's concept; the count is that of other items with the same. Pass one of the two.
        resamples: bootstrap samples; the same ones on every call.

    Returns:
        A figure with one pair of axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: both or neither of `count` and `concept`, not one of them per temperature, negative numbers, or
            temperatures that are not finite.
        TypeError: numbers of another than an integer dtype.

    Example:
        >>> import torch
        >>> from dro_temp.plotting import temperature_by_duplicates
        >>> figure = temperature_by_duplicates(torch.rand(60), concept=torch.arange(60) ** 2 // 400)
        >>> [label.get_text().split("\n")[0] for label in figure.axes[0].get_xticklabels()]
        ['2–3', '4–7', '8–15', '16–31']
    """
    values = finite("temperatures", tau)
    check_count("resamples", resamples)
    if (count is None) == (concept is None):
        raise ValueError(
            f"expected one of count and concept, received {'neither' if count is None else 'both'}. "
            "Pass concept=data.name_index, or count=near_duplicates(features)."
        )
    if concept is not None:
        _, group, size = torch.unique(
            _numbers("concept", concept, len(values)), return_inverse=True, return_counts=True
        )
        count = size[group] - 1
    else:
        assert count is not None
        count, group = _numbers("count", count, len(values)), torch.arange(len(values))
    box = torch.frexp(count.double()).exponent.long()  # 0, 1, 2-3, 4-7, ...
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    _draw(axes, values, box)
    axes.set_title(
        _title(spearman(values, count, group, resamples), concept is not None), fontsize=10, loc="left"
    )
    axes.set_xlabel(
        "number of near-duplicates" if concept is None else "number of others of the same concept"
    )
    axes.set_ylabel("temperature τ")
    tidy(axes)
    axes.grid(False, axis="x")
    return figure


def _title(correlation: tuple[float, float, float], by_concept: bool) -> str:
    whole, low, high = (f"{number:.2f}".replace("-", "−") for number in correlation)
    if whole == "nan":
        return "Spearman r undefined: one side is all one value"
    return f"Spearman r = {whole} [{low}, {high}]   (95 % bootstrap over {'concepts' if by_concept else 'items'})"


def _draw(axes: "Axes", tau: Tensor, box: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    shown = torch.randperm(len(tau), generator=generator)[:_POINTS]
    beside = 0.56 * torch.rand(len(shown), generator=generator) - 0.28
    axes.scatter(
        (box[shown] + beside).numpy(), tau[shown].numpy(), s=5, color=COLOURS[5], alpha=0.35, linewidths=0,
        zorder=1,
    )  # fmt: skip
    boxes = torch.unique(box).tolist()
    parts = axes.boxplot(
        [tau[box == b].numpy() for b in boxes], positions=boxes, widths=0.62, whis=(5, 95), showfliers=False,
        manage_ticks=False, zorder=3,
    )  # fmt: skip
    for name, lines in parts.items():
        for line in lines:
            line.set(
                color=COLOURS[1] if name == "medians" else COLOURS[0],
                linewidth=2 if name == "medians" else 1.2,
            )
    medians = [float(tau[box == b].quantile(0.5)) for b in boxes]
    axes.plot(boxes, medians, color=COLOURS[1], linewidth=1.2, zorder=2)
    axes.set_xticks(boxes, [f"{_range(b)}\nn = {int((box == b).sum()):,}" for b in boxes])


def _range(box: int) -> str:
    """The counts in a box, as text."""
    low, high = 2**box // 2, 2**box - 1
    return str(low) if low >= high else f"{low}–{high}"


def _numbers(name: str, x: Tensor, n: int) -> Tensor:
    check_several("numbers of each row", x, "Pass a tensor of one number per row.")
    x = torch.as_tensor(x).detach().cpu()
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"expected {name} of an integer dtype, received {x.dtype}. Pass {name}.long().")
    if x.shape != (n,) or int(x.min()) < 0:
        raise ValueError(
            f"expected {name} [{n}], one number >= 0 per temperature, received {list(x.shape)}"
            f"{'' if x.numel() == 0 else f' from {int(x.min())} on'}. Index temperatures and {name} alike."
        )
    return x.long()
