"""Temperatures of concepts: which are lowest and highest, and whether their own rows agree."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from dro_temp._checks import check_count, check_several
from dro_temp._typing import PerRow
from dro_temp.plotting._style import COLOURS, finite, new_figure, tidy
from dro_temp.plotting.duplicates import _numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 3000  # more are one cloud
_PAIRS = 20_000  # more change no line
_LETTERS = 38  # of a name


def temperature_by_concept(
    tau: PerRow, concept: Int[Tensor, "n"], names: Sequence[str] | None = None, *, k: int = 8, least: int = 2
) -> "Figure":
    """The concepts of lowest and of highest median temperature, all others between them, and what sets rows apart.

    Left, concepts from the lowest median to the highest: the k at either end with their names, the rest squeezed
    between them in grey. A dot is a row, a bar reaches from a concept's lowest row to its highest, the mark is the
    median. Right, how far the temperatures of two rows lie apart, if they are of one concept and if they are not:
    the share of pairs that differ by less. Where concepts decide, the first line rises well before the second.

    Args:
        tau: one temperature per row.
        concept: number of each row's concept, for example `GlyphCaptions.name_index`.
        names: name of each concept, by its number; numbers are shown without.
        k: how many concepts to name at either end; fewer if there are fewer than 2k.
        least: concepts of fewer rows are left out, at least 2.

    Returns:
        A figure with two pairs of axes.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: temperatures that are not finite, not one concept each, fewer than two concepts of `least` rows,
            or a concept without a name.
        TypeError: concepts of another than an integer dtype.

    Example:
        >>> import torch
        >>> from dro_temp.plotting import temperature_by_concept
        >>> concept = torch.arange(60) // 3
        >>> figure = temperature_by_concept(0.1 + 0.001 * concept, concept, [f"thing {i}" for i in range(20)], k=2)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['thing 0', 'thing 1', 'thing 18', 'thing 19']
    """
    values = finite("temperatures", tau)
    check_several("concept", concept, "Pass a tensor of one number per row.")
    if names is not None:
        check_several("names", names, "Pass a list of strings, one per concept.")
    numbers = _numbers("concept", concept, len(values))
    check_count("k", k)
    check_count("least", least, 2)
    values, numbers = _often(values, numbers, least)
    if names is not None and len(names) <= int(numbers.max()):
        raise ValueError(
            f"expected a name for each concept up to {int(numbers.max())}, received {len(names)} names. "
            "Pass names by concept number: names[concept[i]] is that of row i."
        )
    different, place = torch.unique(numbers, return_inverse=True)
    medians = torch.stack([part.quantile(0.5) for part in _parts(values, place)])
    order = medians.argsort(stable=True)
    rank = order.argsort()[place]
    ends = min(k, len(different) // 2)
    figure = new_figure(10.0, 2.2 + 0.44 * ends)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_concepts(left, values, rank, ends)
    shown = [*range(ends), *range(len(different) - ends, len(different))]
    labels = [_name(int(different[order[i]]), names) for i in shown]
    left.set_yticks(_height(torch.tensor(shown), len(different), ends).tolist(), labels, fontsize=8)
    left.set_title(f"{len(different):,} concepts of {len(values):,} rows", fontsize=10, loc="left")
    left.set_xlabel("temperature τ")
    _draw_differences(right, values, place)
    for axes in (left, right):
        tidy(axes)
    left.grid(False, axis="y")
    return figure


def _often(values: Tensor, concept: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """The rows of concepts that have enough of them."""
    _, place, count = torch.unique(concept, return_inverse=True, return_counts=True)
    kept = count[place] >= least
    if int((count >= least).sum()) < 2:
        raise ValueError(
            f"expected at least two concepts of {least} rows or more, received {int((count >= least).sum())} among "
            f"{len(count)} concepts of {len(concept)} rows. Number concepts more coarsely, or pass more rows."
        )
    return values[kept], concept[kept]


def _parts(values: Tensor, place: Tensor) -> Sequence[Tensor]:
    """The temperatures of each concept."""
    parts: Sequence[Tensor] = torch.split(values[place.argsort(stable=True)], place.bincount().tolist())
    return parts


def _name(number: int, names: Sequence[str] | None) -> str:
    return (
        f"concept {number}" if names is None else textwrap.shorten(names[number], _LETTERS, placeholder=" …")
    )


def _height(rank: Tensor, concepts: int, ends: int) -> Tensor:
    """Where a concept is drawn: those at the ends a unit apart, the others squeezed into as much as one end takes."""
    rest, rank = concepts - 2 * ends, rank.double()
    room = float(min(rest, max(ends, 4)))
    squeezed = ends + (rank - ends) * (room - 1) / max(rest - 1, 1)
    return torch.where(rank < ends, rank, torch.where(rank < ends + rest, squeezed, rank - rest + room))


def _draw_concepts(axes: "Axes", tau: Tensor, rank: Tensor, ends: int) -> None:
    concepts = 1 + int(rank.max())
    parts = _parts(tau, rank)
    at = _height(torch.arange(concepts), concepts, ends)
    named = (rank < ends) | (rank >= concepts - ends)
    rest = (~named).nonzero()[:, 0]
    rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[:_POINTS]]
    axes.scatter(
        tau[rest].numpy(), at[rank[rest]].numpy(), s=4, color="0.6", alpha=0.5, linewidths=0, zorder=1
    )
    middle = range(ends, concepts - ends)
    axes.plot(
        [float(parts[i].quantile(0.5)) for i in middle], at[ends : concepts - ends].tolist(), color="0.25",
        linewidth=1.5, zorder=2,
    )  # fmt: skip
    for i in (*range(ends), *range(concepts - ends, concepts)):
        y, low, high = float(at[i]), float(parts[i].min()), float(parts[i].max())
        axes.plot([low, high], [y, y], color=COLOURS[0], linewidth=1.2, zorder=2)
        axes.scatter(
            parts[i].numpy(), [y] * len(parts[i]), s=14, color=COLOURS[5], alpha=0.8, linewidths=0, zorder=3
        )
        axes.plot(
            float(parts[i].quantile(0.5)),
            y,
            "|",
            color=COLOURS[1],
            markersize=11,
            markeredgewidth=2,
            zorder=4,
        )
    axes.set_ylim(-0.8, float(at[-1]) + 0.8)


def _draw_differences(axes: "Axes", tau: Tensor, place: Tensor) -> None:
    within, between = _differences(tau, place)
    for x, label, colour, line in (
        (within, "two rows of one concept", COLOURS[0], "-"),
        (between, "of two concepts", COLOURS[1], "--"),
    ):
        share = torch.linspace(0, 100, len(x) + 1)[1:]
        axes.plot(
            [0.0, *x.sort().values.tolist()], [0.0, *share.tolist()], color=colour, linestyle=line, linewidth=1.8,
            label=f"{label}: {float(x.mean()):#.2g}", drawstyle="steps-post",
        )  # fmt: skip
    end = float(torch.cat([within, between]).quantile(0.99))
    axes.set_xlim(0.0, end if end > 0 else None)
    axes.set_ylim(0, 101)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("difference of two temperatures")
    axes.set_ylabel("share of pairs that differ by less (%)")
    axes.legend(loc="lower right", frameon=False, fontsize=8, title="mean difference", title_fontsize=8)


def _differences(tau: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute differences of pairs drawn by lot: of rows of one concept, each pair alike, and of two concepts."""
    chance = torch.Generator().manual_seed(0)
    count = place.bincount()
    # A concept is drawn by its number of pairs; then two of its rows, the second another than the first.
    drawn = torch.multinomial((count * (count - 1)).double(), _PAIRS, replacement=True, generator=chance)
    start, size = (count.cumsum(0) - count)[drawn], count[drawn]
    first = (torch.rand(_PAIRS, generator=chance, dtype=torch.float64) * size).long()
    further = 1 + (torch.rand(_PAIRS, generator=chance, dtype=torch.float64) * (size - 1)).long()
    grouped = tau[place.argsort(stable=True)]
    within = (grouped[start + first] - grouped[start + (first + further) % size]).abs()
    a, b = torch.randint(len(tau), (2, 2 * _PAIRS), generator=chance)
    apart = place[a] != place[b]
    return within, (tau[a] - tau[b])[apart].abs()[:_PAIRS]
