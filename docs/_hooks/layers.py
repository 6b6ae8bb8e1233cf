"""The picture of the layers, drawn from the list that the layer test enforces (tests/support/layers.py).

A page says `<!-- layers -->` where the picture belongs. It is inline SVG: colours come from the theme's own variables
(docs/assets/extra.css), so that it follows light and dark mode.
"""

import html
import runpy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LIST = Path(__file__).resolve().parents[2] / "tests" / "support" / "layers.py"
MARK = "<!-- layers -->"

WIDTH = 700
LETTER = 7.6  # width of a letter at the font size of extra.css
BOX, GAP, PAD = 26, 8, 10  # height of a box; space between boxes; space around them in a layer
LEFT, RIGHT = 44, 44  # columns for the layer's name and for the arrow
INNER = WIDTH - LEFT - RIGHT - 2 * PAD


def _width(name: str) -> float:
    return len(name) * LETTER + 18


def _lines(names: Iterable[str]) -> list[list[str]]:
    """Names of a layer, in as many lines as they need."""
    lines: list[list[str]] = [[]]
    for name in names:
        if lines[-1] and sum(_width(other) + GAP for other in lines[-1]) + _width(name) > INNER:
            lines.append([])
        lines[-1].append(name)
    return lines


def _boxes(line: list[str], y: float) -> Iterator[str]:
    """The boxes of a line, centred."""
    total = sum(map(_width, line)) + GAP * (len(line) - 1)
    x = LEFT + PAD + (INNER - total) / 2
    for name in line:
        w = _width(name)
        yield f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{BOX}" rx="4"/>'
        yield f'<text x="{x + w / 2:.1f}" y="{y + BOX / 2:.1f}">{html.escape(name)}</text>'
        x += w + GAP


def draw(layers: tuple[tuple[str, ...], ...]) -> str:
    """SVG of layers that are listed from the lowest to the highest; the highest is drawn on top."""
    y, parts = 0.0, []
    for level in reversed(range(len(layers))):
        lines = _lines(layers[level])
        height = len(lines) * (BOX + GAP) - GAP + 2 * PAD
        band = WIDTH - LEFT - RIGHT
        parts.append(f'<rect class="band" x="{LEFT}" y="{y:.1f}" width="{band}" height="{height}" rx="6"/>')
        parts.append(f'<text class="level" x="{LEFT / 2}" y="{y + height / 2:.1f}">L{level}</text>')
        for i, line in enumerate(lines):
            parts.extend(_boxes(line, y + PAD + i * (BOX + GAP)))
        y += height + GAP
    bottom, x = y - GAP, WIDTH - RIGHT / 2
    parts.append(f'<path class="arrow" d="M{x} 4V{bottom - 4:.1f}m-5 -9l5 9l5 -9"/>')
    side = f"translate({x + 14} {bottom / 2:.1f}) rotate(90)"
    parts.append(f'<text class="level" transform="{side}">imports</text>')
    described = "; ".join(f"L{i}: {', '.join(names)}" for i, names in enumerate(layers))
    return (
        f'<figure class="layers"><svg viewBox="0 0 {WIDTH} {bottom:.1f}" role="img">'
        f"<title>Layers of dro_temp, which import downwards only. {html.escape(described)}</title>"
        f"{''.join(parts)}</svg></figure>"
    )


def on_page_content(content: str, **_: Any) -> str:
    """Put the picture where a rendered page asks for it."""
    return content.replace(MARK, draw(runpy.run_path(str(LIST))["LAYERS"])) if MARK in content else content
