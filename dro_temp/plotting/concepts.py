"""Temperatures by concept, and by the number of near-duplicates."""

import textwrap
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from dro_temp._checks import check_count, check_several
from dro_temp._typing import PerRow
from dro_temp.functional.ranks import spearman
from dro_temp.plotting._style import COLOURS, Axes, Figure, finite, new_figure, per_row, tidy

_POINTS = 3000  # more are one cloud
_PAIRS = 20_000  # more change no line
_LETTERS = 38  # of a name


def temperature_by_concept(
    tau: PerRow,
    concept: Int[Tensor, "n"],
    names: Sequence[str] | None = None,
    *,
    k: int = 8,
    min_rows: int = 2,
) -> Figure:
    """The concepts of lowest and of highest median temperature, and how far temperatures agree within a concept.

    Left, concepts by their median: the k at either end with their names, the rest in grey. A dot is a row, a bar
    reaches from a concept's lowest row to its highest, the mark is the median. Right, the cumulative distribution of
    the difference of two rows of one concept, and of two: where concepts decide, the first rises well before.

    Args:
        tau: one temperature per row.
        concept: number of each row's concept, for example `GlyphCaptions.name_index`.
        names: name of each concept, by its number; numbers are shown without.
        k: how many concepts to name at either end; fewer if there are fewer than 2k.
        min_rows: concepts of fewer rows are left out, at least 2.

    Returns:
        A figure with two pairs of axes.

    Raises:
        ValueError: temperatures that are not finite, not one concept each, fewer than two concepts of `min_rows` rows,
            or a concept without a name.
        TypeError: concepts of another than an integer dtype.

    Example:
        >>> concept = torch.arange(60) // 3
        >>> figure = temperature_by_concept(0.1 + 0.001 * concept, concept, [f"thing {i}" for i in range(20)], k=2)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['thing 0', 'thing 1', 'thing 18', 'thing 19']
    """
    values = finite("temperatures", tau)
    if names is not None:
        check_several("names", names, "Pass a list of strings, one per concept.")
    numbers = per_row("concept", concept, len(values))
    check_count("k", k)
    check_count("min_rows", min_rows, 2)
    different, place, count = torch.unique(numbers, return_inverse=True, return_counts=True)
    parts = torch.split(values[place.argsort(stable=True)], count.tolist())
    frequent = [i for i, part in enumerate(parts) if len(part) >= min_rows]
    if len(frequent) < 2:
        raise ValueError(
            f"expected at least two concepts of {min_rows} rows or more, received {len(frequent)} among "
            f"{len(parts)} concepts of {len(numbers)} rows. Number concepts more coarsely, or pass more rows."
        )
    last = int(different[frequent[-1]])
    if names is not None and len(names) <= last:
        raise ValueError(
            f"expected a name for each concept up to {last}, received {len(names)} names. "
            "Pass names by concept number: names[concept[i]] is that of row i."
        )
    order = sorted(frequent, key=lambda i: float(parts[i].quantile(0.5)))
    parts = tuple(parts[i] for i in order)
    ends = min(k, len(parts) // 2)
    figure = new_figure(10.0, 2.2 + 0.44 * ends)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    height = _draw_concepts(left, parts, ends)
    shown = [*range(ends), *range(len(parts) - ends, len(parts))]
    labels = [
        f"concept {i}" if names is None else textwrap.shorten(names[i], _LETTERS, placeholder=" …")
        for i in different[order][shown].tolist()
    ]
    left.set_yticks(height[shown].tolist(), labels, fontsize=8)
    rows = sum(map(len, parts))
    left.set_title(f"{len(parts):,} concepts of {rows:,} rows", fontsize=10, loc="left")
    tidy(left, xlabel="temperature τ")
    left.grid(False, axis="y")
    _draw_differences(right, parts)
    return figure


def _draw_concepts(axes: Axes, parts: Sequence[Tensor], ends: int) -> Tensor:
    """Draw the rows of each concept; the height of each, those at the ends a unit apart."""
    rest = len(parts) - 2 * ends
    room = min(rest, max(ends, 4))  # for all between the ends
    between = torch.linspace(ends, ends + max(room, 1) - 1, rest, dtype=torch.float64)
    below = torch.arange(ends, dtype=torch.float64)
    height = torch.cat([below, between, below + ends + room])
    middle = slice(ends, ends + rest)
    x = torch.cat([torch.empty(0, dtype=torch.float64), *parts[middle]])
    y = between.repeat_interleave(torch.tensor([len(part) for part in parts[middle]], dtype=torch.long))
    unnamed = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:_POINTS]
    axes.scatter(x[unnamed].numpy(), y[unnamed].numpy(), s=4, color="0.6", alpha=0.5, linewidths=0, zorder=1)
    medians = [float(part.quantile(0.5)) for part in parts]
    axes.plot(medians[middle], between.tolist(), color="0.25", linewidth=1.5, zorder=2)
    for i in (*range(ends), *range(ends + rest, len(parts))):
        x, at = parts[i], [float(height[i])] * len(parts[i])
        axes.plot([float(x.min()), float(x.max())], at[:2], color=COLOURS[0], linewidth=1.2, zorder=2)
        axes.scatter(x.numpy(), at, s=14, color=COLOURS[5], alpha=0.8, linewidths=0, zorder=3)
        axes.plot(medians[i], at[0], "|", color=COLOURS[1], markersize=11, markeredgewidth=2, zorder=4)
    axes.set_ylim(-0.8, float(height[-1]) + 0.8)
    return height


def _draw_differences(axes: Axes, parts: Sequence[Tensor]) -> None:
    """Distributions over random pairs of rows: uniform over those of one concept, and over those of two."""
    rng, tau, count = (
        torch.Generator().manual_seed(0),
        torch.cat(tuple(parts)),
        torch.tensor([*map(len, parts)]),
    )
    # A concept is drawn by its number of pairs; then two of its rows, the second another than the first.
    drawn = torch.multinomial((count * (count - 1)).double(), _PAIRS, replacement=True, generator=rng)
    start, size = (count.cumsum(0) - count)[drawn], count[drawn]
    first = (torch.rand(_PAIRS, generator=rng, dtype=torch.float64) * size).long()
    further = 1 + (torch.rand(_PAIRS, generator=rng, dtype=torch.float64) * (size - 1)).long()
    within = (tau[start + first] - tau[start + (first + further) % size]).abs()
    a, b = torch.randint(len(tau), (2, 2 * _PAIRS), generator=rng)
    place = torch.arange(len(count)).repeat_interleave(count)
    between = (tau[a] - tau[b])[place[a] != place[b]].abs()[:_PAIRS]
    for x, label, colour, line in (
        (within, "two rows of one concept", COLOURS[0], "-"),
        (between, "of two concepts", COLOURS[1], "--"),
    ):
        label = f"{label}: {float(x.mean()):#.2g}"
        axes.ecdf(x.numpy(), color=colour, linestyle=line, linewidth=1.8, label=label)
    end = float(torch.cat([within, between]).quantile(0.99))
    axes.locator_params(axis="x", nbins=4)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
    axes.legend(loc="lower right", frameon=False, fontsize=8, title="mean difference", title_fontsize=8)
    labels = {"xlabel": "difference of two temperatures", "ylabel": "share of pairs that differ by less (%)"}
    tidy(axes, xlim=(0, end if end > 0 else None), ylim=(0, 1.01), **labels)


def temperature_by_duplicates(
    tau: PerRow,
    *,
    count: Int[Tensor, "n"] | None = None,
    concept: Int[Tensor, "n"] | None = None,
) -> Figure:
    r"""Temperatures against the number of near-duplicates.

    A box per power of two of the count holds the middle half, its whiskers 5 % and 95 %; the line joins the medians.
    The title gives Spearman's rank correlation r with a 95 % interval of 1000 bootstrap samples, the same ones on
    every call. With `concept`, whole concepts are resampled, which is right where items of one concept have similar
    temperatures; with `count`, items.

    Args:
        tau: one temperature per item, [n].
        count: number of others that are nearly the same, for example `evaluation.near_duplicates(features)`, or
            the number of a caption's images.
        concept: number of each item's concept; the count is that of other items with the same. Pass one of the two.

    Returns:
        A figure with one pair of axes.

    Raises:
        ValueError: both or neither of `count` and `concept`, not one of them per temperature, negative numbers, or
            temperatures that are not finite.
        TypeError: numbers of another than an integer dtype.

    Example:
        >>> figure = temperature_by_duplicates(torch.rand(60), concept=torch.arange(60) ** 2 // 400)
        >>> [label.get_text().split("\n")[0] for label in figure.axes[0].get_xticklabels()]
        ['2–3', '4–7', '8–15', '16–31']
    """
    values = finite("temperatures", tau)
    if (count is None) == (concept is None):
        raise ValueError(
            f"expected one of count and concept, received {'neither' if count is None else 'both'}. "
            "Pass concept=data.name_index, or count=near_duplicates(features)."
        )
    if count is not None:
        count, group = per_row("count", count, len(values)), torch.arange(len(values))
        xlabel, resampled = "number of near-duplicates", "items"
    else:
        assert concept is not None
        numbers = per_row("concept", concept, len(values))
        _, group, size = torch.unique(numbers, return_inverse=True, return_counts=True)
        count = size[group] - 1
        xlabel, resampled = "number of others of the same concept", "concepts"
    r, low, high = (f"{x:.2f}".replace("-", "−") for x in spearman(values, count, group, resamples=1000))
    title = f"Spearman r = {r} [{low}, {high}]   (95 % bootstrap over {resampled})"
    title = "Spearman r undefined: one side is all one value" if r == "nan" else title
    figure = new_figure(7.0, 4.0)
    axes = figure.subplots()
    box = torch.frexp(count.double()).exponent.long()  # 0, 1, 2-3, 4-7, ...
    generator = torch.Generator().manual_seed(0)
    shown = torch.randperm(len(values), generator=generator)[:_POINTS]
    x = box[shown] + 0.56 * torch.rand(len(shown), generator=generator) - 0.28
    axes.scatter(x.numpy(), values[shown].numpy(), s=5, color=COLOURS[5], alpha=0.35, linewidths=0, zorder=1)
    boxes = torch.unique(box).tolist()
    parts = [values[box == b] for b in boxes]
    blue = {"color": COLOURS[0], "linewidth": 1.2}
    axes.boxplot(
        [part.numpy() for part in parts], positions=boxes, widths=0.62, whis=(5, 95), showfliers=False,
        manage_ticks=False, zorder=3, boxprops=blue, whiskerprops=blue, capprops=blue,
        medianprops={"color": COLOURS[1], "linewidth": 2},
    )  # fmt: skip
    medians = [float(part.quantile(0.5)) for part in parts]
    axes.plot(boxes, medians, color=COLOURS[1], linewidth=1.2, zorder=2)
    counts = [f"{2**b // 2}–{2**b - 1}" if b > 1 else str(b) for b in boxes]
    labels = [f"{text}\nn = {len(part):,}" for text, part in zip(counts, parts, strict=True)]
    axes.set_xticks(boxes, labels)
    axes.set_title(title, fontsize=10, loc="left")
    tidy(axes, xlabel=xlabel, ylabel="temperature τ")
    axes.grid(False, axis="x")
    return figure
