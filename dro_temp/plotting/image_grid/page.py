"""Images as a web page: what its template shows."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor

from dro_temp._checks import check_several
from dro_temp._optional import optional_module
from dro_temp._typing import PerRow
from dro_temp.plotting._style import finite
from dro_temp.plotting.pages.rendering import ColourScale, bars, number, rendered

_ROWS = 40  # of a map of temperatures over training
_COLUMNS = 60  # at most

#: Titles of the columns, and rows: the number of an image, then a text for each column.
Table: TypeAlias = tuple[Sequence[str], Sequence[tuple[int, Sequence[str]]]]


def image_page(
    images: Shaped[Tensor, "n ..."],
    captions: Sequence[str],
    tau: PerRow | Sequence[float],
    *,
    near: Sequence[Sequence[tuple[str, float]]] = (),
    near_heading: str = "nearest other captions",
    tables: Mapping[str, Table] | None = None,
    history: Sequence[tuple[int, Mapping[str, Tensor]]] = (),
    unit: str = "epoch",
    title: str = "Temperature of every image",
) -> str:
    """One self-contained HTML page: a grid of images from the lowest temperature to the highest.

    Pointing at an image, or moving there with the keyboard, shows a card with its caption and what is near it. Below
    the grid are the histogram of the temperatures, the histograms over training, and tables. The page has a light and
    a dark theme, loads nothing, and runs no script but its own.

    Args:
        images: [n h w] grey or [n 3 h w] colour, uint8, or floats in [0, 1]; 64 pixels a side are enough.
        captions: one per image.
        tau: one temperature per image, > 0.
        near: for each image, texts and their similarity in [-1, 1], highest first, for its card; empty for none.
        near_heading: what these are.
        tables: by heading, titles of the columns and rows of an image's number and a text for each column.
        history: pairs of a step and the temperatures of each view at it, [m] each, > 0.
        unit: of the steps.
        title: heading of the page.

    Returns:
        The page. Write it with `Path("page.html").write_text(page, encoding="utf-8")`.

    Raises:
        ValueError: no images, not as many captions, temperatures or lists as images, or a temperature that is not
            positive.
        ImportError: Pillow is missing.

    Example:
        >>> page = image_page(torch.rand(2, 8, 8), ["a", "b"], [0.1, 0.2], near=[[("b", 0.9)], [("a", 0.9)]])
        >>> page.startswith("<!doctype html>"), "https:" in page
        (True, False)
    """
    check_several("captions", captions, "Pass a list of strings.")
    taus = finite("temperatures", torch.as_tensor(tau)).tolist() if len(captions) else []
    near = near or [()] * len(captions)
    if not (0 < len(images) == len(captions) == len(taus) == len(near)):
        raise ValueError(
            "expected one caption, one temperature and, if any, one list of what is near for each of at least one "
            f"image, received {len(images)} images, {len(captions)} captions, {len(taus)} temperatures and "
            f"{len(near)} lists. Index all alike."
        )
    if min(taus) <= 0:
        raise ValueError(
            f"expected temperatures > 0, received {min(taus)}. Pass what a predictor returned for these images."
        )
    order = sorted(range(len(taus)), key=taus.__getitem__)
    known = [taus[i] for i in order]
    maps, ends = _maps(history)
    return rendered(
        __package__,
        [_card(captions[i], taus[i], near[i], near_heading) for i in order],
        {},
        title=title,
        sources=[_source(image) for image in images],
        captions=list(captions),
        taus=taus,
        order=order,
        known=known,
        scale=ColourScale(known),
        bars=bars(known),
        maps=maps,
        ends=ends,
        unit=unit,
        tables=dict(tables or {}),
    )


def _source(image: Tensor) -> str:
    """An image as an address that holds its data."""
    pixels = image.detach().cpu()
    if pixels.is_floating_point():
        pixels = (255 * pixels.clamp(0, 1)).round()
    pixels = (pixels.movedim(0, -1) if pixels.dim() == 3 else pixels).to(torch.uint8).contiguous()
    pillow = optional_module("PIL.Image", "which writes the images of a page", extra="recipes")
    data = io.BytesIO()
    pillow.fromarray(pixels.numpy()).save(data, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _card(caption: str, tau: float, near: Sequence[tuple[str, float]], heading: str) -> dict[str, Any]:
    rows = [(text, f"{value:.3f}", round(max(0.0, value), 3), 0) for text, value in near]
    return {"caption": caption, "tau": number(tau), "heading": heading, "near": rows}


def _maps(
    history: Sequence[tuple[int, Mapping[str, Tensor]]],
) -> tuple[dict[str, list[tuple[int, list[tuple[int, float]]]]], tuple[float, float]]:
    """For each view and step, the filled bins of its histogram with their shade in (0, 1]; the ends of all bins."""
    everything = [x for _, tau in history for x in tau.values()]
    if not everything:
        return {}, (0.0, 1.0)
    values = finite("temperatures over training", torch.cat([x.flatten().float() for x in everything]))
    low, high = float(values.min()), float(values.max())
    if high <= low * (1 + 1e-6):
        low, high = 0.95 * low, 1.05 * low
    chosen = history[:: math.ceil(len(history) / _COLUMNS)]
    edges = torch.linspace(low, high, _ROWS + 1, dtype=torch.float64)
    edges[-1] = math.nextafter(high, math.inf)
    found: dict[str, list[tuple[int, list[tuple[int, float]]]]] = {}
    for step, tau in chosen:
        for view, x in tau.items():
            share = torch.histogram(x.detach().cpu().double().flatten(), edges).hist / max(1, x.numel())
            # The square root: otherwise a first step with one temperature would leave all others faint.
            shade = (share / share.max().clamp(min=1e-9)).sqrt()
            cells = [(row, float(shade[row])) for row in shade.nonzero()[:, 0].tolist()]
            found.setdefault(view, []).append((step, cells))
    return found, (low, high)
