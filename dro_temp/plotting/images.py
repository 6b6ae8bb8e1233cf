"""The inputs of lowest and highest temperature."""

import math
import textwrap
from collections.abc import Sequence

from jaxtyping import Shaped
from torch import Tensor

from dro_temp._checks import check_count, check_several
from dro_temp._typing import PerRow
from dro_temp.plotting._style import Figure, finite, new_figure


def image_extremes(
    images: Shaped[Tensor, "n ..."], captions: Sequence[str], tau: PerRow, *, k: int = 6
) -> Figure:
    """The k inputs of lowest and the k of highest temperature, the temperature above each and the caption below.

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
    ends = {"lowest": order[:k], "highest": order[-k:]}
    texts = {i: textwrap.fill(captions[i], 17, break_on_hyphens=False) for i in order[:k] + order[-k:]}
    lines = 1 + max(text.count("\n") for text in texts.values())
    columns, rows = min(k, 6), math.ceil(k / 6)
    figure = new_figure(1.3 * columns + 0.2, 2 * (0.4 + rows * (1.6 + 0.16 * lines)))
    for part, (end, chosen) in zip(figure.subfigures(2, 1, squeeze=False).flat, ends.items(), strict=True):
        part.suptitle(f"{end} temperatures", x=0.02, ha="left", weight="bold", fontsize=11)
        grid = part.subplots(rows, columns, squeeze=False).flat
        for unused in grid[k:]:
            unused.remove()
        for axes, i in zip(grid, chosen, strict=False):
            image = images[i].detach().cpu()
            image = image.movedim(0, -1) if image.dim() == 3 else image
            axes.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1 if image.is_floating_point() else 255)
            axes.set(xticks=[], yticks=[], anchor="N")
            axes.spines[:].set_color("0.8")
            axes.set_title(f"τ = {float(values[i]):.4f}", fontsize=9, pad=3)
            axes.set_xlabel(texts[i], fontsize=8.5, color="0.25")
    return figure
