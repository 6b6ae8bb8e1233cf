"""The parts of the page that exist before any script runs, coloured by temperature."""

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_SHADES = 6  # on either side of the middle
_STRONGEST = 75  # per cent of the colour; the text on it must stay readable
_TAIL = 0.02  # share of tokens at either end that share the strongest colour
_BARS, _WIDTH, _HEIGHT = 40, 640, 120
_EXTREMES = 10
_BEFORE, _AFTER = 6, 3  # tokens of context in the tables,
_CONTEXT = 32  # and characters of either side
_LONGEST = 40  # characters of a token in a card or table
_VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍"}

# Controls, surrogates and codes that are no characters; marks that reverse what follows them.
_UNFIT = ((0x7F, 0x9F), (0xD800, 0xDFFF), (0xFDD0, 0xFDEF), (0x202A, 0x202E), (0x2066, 0x2069))


def harmless(text: str) -> str:
    """The text, with pictures in place of what HTML cannot hold or what would reverse it; newlines and tabs stay."""
    return "".join(c if c in "\n\t" else _picture(ord(c)) for c in text)


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    unfit = code & 0xFFFE == 0xFFFE or any(first <= code <= last for first, last in _UNFIT)
    return "\ufffd" if unfit else chr(code)


def escaped(text: str) -> str:
    """For the content of an element, or an attribute in double quotes."""
    return html.escape(harmless(text))


def shown(token: str) -> str:
    """A token on one line, with its whitespace made visible and its end cut where it is long."""
    inner = token.strip()
    start = token.index(inner) if inner else len(token)
    ends = (token[:start], token[start + len(inner) :])
    before, after = (end.replace(" ", "·") for end in ends)
    visible = "".join(_VISIBLE.get(c, c) for c in before + inner + after)
    cut = visible if len(visible) <= _LONGEST else visible[: _LONGEST - 1] + "…"
    return harmless(cut) or "∅"


def as_json(value: Any) -> str:
    """JSON for a script element, which `</script>` and `<!--` would end or confuse."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@dataclass(frozen=True)
class ColourScale:
    """Blue below the median, orange above, both stronger further away.

    Args:
        low: temperature up to which the blue is strongest.
        middle: the median, without colour.
        high: temperature from which the orange is strongest.
    """

    low: float
    middle: float
    high: float

    #: Names of the classes, from the lowest temperatures to the highest.
    classes = tuple(f"c{i}" for i in range(2 * _SHADES + 1))

    @classmethod
    def from_temperatures(cls, taus: list[float]) -> "ColourScale":
        """The scale of these temperatures; of temperature 1 if there are none."""
        ranked = sorted(taus) or [1.0]
        return cls(*(ranked[round(q * (len(ranked) - 1))] for q in (_TAIL, 0.5, 1 - _TAIL)))

    def class_of(self, tau: float) -> str:
        """Class of a temperature; the empty string for NaN."""
        if math.isnan(tau):
            return ""
        distance = math.log(tau / self.middle)
        end = math.log((self.high if distance > 0 else self.low) / self.middle)
        share = min(1.0, distance / end) if abs(end) > 1e-4 else 0.0  # equal up to rounding: one colour
        return self.classes[_SHADES + round(math.copysign(share * _SHADES, distance))]

    def style(self) -> str:
        """The classes as a style sheet."""
        rules = []
        for name, shade in zip(self.classes, range(-_SHADES, _SHADES + 1), strict=True):
            colour, percent = f"var(--{'warm' if shade > 0 else 'cool'})", abs(shade) * _STRONGEST / _SHADES
            mixed = f"color-mix(in srgb, {colour} {percent:g}%, transparent)"
            rules.append(f".{name} {{ background: {mixed}; fill: {mixed}; }}\n")
        return "".join(rules)


def number(tau: float) -> str:
    """Three significant digits."""
    return f"{tau:#.3g}" if tau < 1000 else f"{tau:.0f}"


def header(title: str, taus: list[float]) -> str:
    """Title, and the text in numbers."""
    ranked = sorted(t for t in taus if not math.isnan(t))
    numbers = f"{len(taus)} tokens"
    if ranked:
        low, middle, high = (number(ranked[round(q * (len(ranked) - 1))]) for q in (0, 0.5, 1))
        numbers += f", temperatures from {low} to {high}, median {middle}"
    return (
        f'<header><h1>{escaped(title)}</h1><button id="theme" type="button">light / dark</button>'
        f"<p>{numbers}. Point at a token, or move there with Tab and the arrow keys, to see what the model expected in "
        "its place; Enter keeps the card open, Escape closes it.</p></header>"
    )


def legend(scale: ColourScale) -> str:
    """The colours and the temperatures that they stand for."""
    boxes = "".join(f'<i class="{name}"></i>' for name in scale.classes)
    labels = (
        f"<span>≤ {number(scale.low)}<small>lower: sharper</small></span>"
        f"<span>{number(scale.middle)}<small>median</small></span>"
        f"<span>≥ {number(scale.high)}<small>higher: flatter</small></span>"
    )
    return (
        '<figure id="legend"><figcaption>temperature τ</figcaption>'
        f'<div class="boxes" aria-hidden="true">{boxes}</div><div class="labels">{labels}</div></figure>'
    )


def text(tokens: Sequence[str], taus: list[float], scale: ColourScale) -> str:
    """The text. A div, not a pre, which would lose a newline at its beginning."""
    spans = []
    for i, (token, tau) in enumerate(zip(tokens, taus, strict=True)):
        # The marks come from the style sheet: what is copied from the page is the text itself.
        content = escaped(token).replace("\n", '<i class="newline"></i>\n') or '<i class="none"></i>'
        spoken = "not predicted" if math.isnan(tau) else f"temperature {number(tau)}"
        spans.append(
            f'<span class="t {scale.class_of(tau)}" id="t{i}" role="button" tabindex="{0 if i == 0 else -1}" '
            f'aria-label="{escaped(shown(token))}, {spoken}">{content}</span>'
        )
    label = 'role="group" aria-label="the text, token by token"'
    return f'<main><div id="text" dir="auto" {label}>{"".join(spans)}</div></main>'


def histogram(taus: list[float], scale: ColourScale) -> str:
    """How many tokens have which temperature."""
    known = [t for t in taus if not math.isnan(t)]
    if not known:
        return ""
    low, high = min(known), max(known)
    if high <= low * (1 + 1e-6):
        low, high = 0.95 * low, 1.05 * low
    heights, edges = (
        x.tolist() for x in torch.histogram(torch.tensor(known).double(), _BARS, range=(low, high))
    )
    counts = list(map(int, heights))
    bars, width = [], _WIDTH / _BARS
    for i, count in enumerate(counts):
        height = max(1.5, _HEIGHT * count / max(counts))
        if count:
            bars.append(
                f'<rect class="bar {scale.class_of((edges[i] + edges[i + 1]) / 2)}" x="{i * width + 1:g}" '
                f'y="{_HEIGHT - height:.1f}" width="{width - 2:g}" height="{height:.1f}">'
                f"<title>{count} tokens from {number(edges[i])} to {number(edges[i + 1])}</title></rect>"
            )
    ticks = ((0, "start", low), (_WIDTH / 2, "middle", (low + high) / 2), (_WIDTH, "end", high))
    axis = "".join(
        f'<text x="{x}" y="{_HEIGHT + 18}" text-anchor="{anchor}">{number(tau)}</text>'
        for x, anchor, tau in ticks
    )
    return (
        f'<section><h2>Distribution</h2><svg viewBox="0 -16 {_WIDTH} {_HEIGHT + 40}" role="img" '
        f'aria-label="Histogram of {len(known)} temperatures from {number(min(known))} to {number(max(known))}">'
        f'{"".join(bars)}<path class="axis" d="M0 {_HEIGHT}H{_WIDTH}"/>{axis}'
        f'<text x="0" y="-4">tokens, up to {max(counts)} a bar</text></svg></section>'
    )


def extremes(tokens: Sequence[str], taus: list[float], scale: ColourScale) -> str:
    """The tokens of lowest and of highest temperature, in their context."""
    ranked = sorted((i for i, t in enumerate(taus) if not math.isnan(t)), key=taus.__getitem__)
    k = min(_EXTREMES, len(ranked) // 2)
    tables = "".join(
        f"<section><h2>{heading}</h2><table><thead><tr><th>τ</th><th>token, in its context</th></tr></thead>"
        f"<tbody>{''.join(_row(i, tokens, taus[i], scale) for i in chosen)}</tbody></table></section>"
        for heading, chosen in (
            ("Lowest temperatures", ranked[:k]),
            ("Highest temperatures", ranked[::-1][:k]),
        )
    )
    return f'<div class="columns">{tables}</div>' if k else ""


def _row(i: int, tokens: Sequence[str], tau: float, scale: ColourScale) -> str:
    # On one line, each run of whitespace as one space.
    before, after = (
        re.sub(r"\s+", " ", "".join(context))
        for context in (tokens[max(0, i - _BEFORE) : i], tokens[i + 1 : i + 1 + _AFTER])
    )
    return (
        f"<tr><td>{number(tau)}</td><td><bdi>{escaped(before[-_CONTEXT:].lstrip())}</bdi>"
        f'<a href="#t{i}" class="{scale.class_of(tau)}"><bdi>{escaped(shown(tokens[i]))}</bdi></a>'
        f"<bdi>{escaped(after[:_CONTEXT])}</bdi></td></tr>"
    )
