"""The inputs of lowest and highest temperature."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from dro_temp._checks import check_count, check_several
from dro_temp._typing import PerRow
from dro_temp.plotting._style import Axes, Figure, finite, new_figure

# Inches: an image, the space between images, a line of caption, the head of a sheet.
_CELL, _GAP, _LINE, _HEAD = 1.12, 0.18, 0.15, 0.42


def image_extremes(
    images: Shaped[Tensor, "n ..."], captions: Sequence[str], tau: PerRow, *, k: int = 6
) -> Figure:
    """The k inputs of lowest and the k of highest temperature, with temperature and caption under each.

    Args:
        images: [n h w] grey, shown with bright pixels as dark ink, or [n 3 h w] colour; uint8, or floats in [0, 1].
        captions: one per image, of any length: long ones are wrapped.
        tau: one temperature per image.
        k: how many at either end; fewer if there are fewer than 2k images.

    Returns:
        A figure with one small pair of axes per image, the lowest first.

    Raises:
        ValueError: not as many captions and temperatures as images, or fewer than two of them.

    Example:
        >>> import torch
        >>> from dro_temp.plotting import image_extremes
        >>> figure = image_extremes(torch.rand(9, 8, 8), [f"image {i}" for i in range(9)], torch.rand(9), k=3)
        >>> len(figure.axes)
        6
    """
    check_count("k", k)
    values = finite("temperatures", tau)
    check_several("images", images, "Pass a tensor [n ...], or a list of images.")
    check_several("captions", captions, "Pass a list of strings.")
    if not (len(images) == len(captions) == len(values) >= 2):
        raise ValueError(
            f"expected one caption and one temperature for each of at least 2 images, received {len(images)} "
            f"images, {len(captions)} captions and {len(values)} temperatures. Index all three alike."
        )
    k = min(k, len(values) // 2)
    order = values.argsort(stable=True).tolist()
    columns = min(k, 6)
    texts = {
        i: "\n".join(textwrap.wrap(captions[i], 17, break_on_hyphens=False)) or " "
        for i in order[:k] + order[-k:]
    }
    # Placed by hand, in inches: layout engines do not know about text below an image, and clip it.
    cell = _CELL + 0.38 + _LINE * max(text.count("\n") + 1 for text in texts.values())
    rows = math.ceil(k / columns)
    width, height = columns * (_CELL + _GAP) + _GAP, 2 * (_HEAD + rows * cell)
    figure = new_figure(width, height, layout=None)
    for title, chosen, top in (("lowest", order[:k], height), ("highest", order[-k:], height / 2)):
        x, y = _GAP / width, (top - 0.12) / height
        figure.text(x, y, f"{title} temperatures", weight="bold", fontsize=11, va="top")
        for n, i in enumerate(chosen):
            left = _GAP + n % columns * (_CELL + _GAP)
            bottom = top - _HEAD - n // columns * cell - _CELL
            axes = figure.add_axes((left / width, bottom / height, _CELL / width, _CELL / height))
            image = images[i].detach().cpu()
            image = image.movedim(0, -1) if image.dim() == 3 else image
            axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1 if image.is_floating_point() else 255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.8")
            _write_below(axes, f"τ = {float(values[i]):.4f}", points=5, fontsize=9)
            _write_below(axes, texts[i], points=20, fontsize=8.5, color="0.25")
    return figure


def _write_below(axes: Axes, text: str, *, points: float, **style: Any) -> None:
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(text, (0.5, 0), (0, -points), ha="center", va="top", **place, **style)
