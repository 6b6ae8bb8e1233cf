"""The parts of the page that are there before any script runs."""

import math
import re
from collections.abc import Iterator, Sequence

from dro_temp.plotting.token_page.colours import ColourScale
from dro_temp.plotting.token_page.escaping import escaped, shown

_BARS, _WIDTH, _HEIGHT = 40, 640, 120
_EXTREMES = 10
_BEFORE, _AFTER = 6, 3  # tokens of context in the tables,
_CONTEXT = 32  # and characters of either side


def number(tau: float) -> str:
    """Three digits that count."""
    return f"{tau:#.3g}" if tau < 1000 else f"{tau:.0f}"


def header(title: str, taus: list[float]) -> str:
    """Title, and the text in numbers."""
    ranked = sorted(t for t in taus if not math.isnan(t))
    numbers = f"{len(taus)} tokens"
    if ranked:
        middle = ranked[round((len(ranked) - 1) / 2)]
        numbers += f", temperatures from {number(ranked[0])} to {number(ranked[-1])}, median {number(middle)}"
    return (
        f'<header><h1>{escaped(title)}</h1><button id="theme" type="button">light / dark</button>'
        f"<p>{numbers}. Point at a token, or move there with Tab and the arrow keys, to see what the model expected in "
        "its place; Enter keeps the card open, Escape closes it.</p></header>"
    )


def legend(scale: ColourScale) -> str:
    """The colours and the temperatures that they stand for."""
    boxes = "".join(f'<i class="{name}"></i>' for name in scale.classes)
    labels = "".join(
        f"<span>{sign}{number(tau)}<small>{said}</small></span>"
        for sign, tau, said in (
            ("≤ ", scale.low, "lower: sharper"),
            ("", scale.middle, "median"),
            ("≥ ", scale.high, "higher: flatter"),
        )
    )
    return (
        '<figure id="legend"><figcaption>temperature τ</figcaption>'
        f'<div class="boxes" aria-hidden="true">{boxes}</div><div class="labels">{labels}</div></figure>'
    )


def text(tokens: Sequence[str], taus: list[float], scale: ColourScale) -> str:
    """The text. A div, not a pre, which would lose a newline at its beginning."""
    spans = "".join(
        f'<span class="t {scale.of_tau(tau)}" id="t{i}" role="button" tabindex="{0 if i == 0 else -1}" '
        f'aria-label="{escaped(shown(token))}, {_spoken(tau)}">{_content(token)}</span>'
        for i, (token, tau) in enumerate(zip(tokens, taus, strict=True))
    )
    return f'<main><div id="text" dir="auto" role="group" aria-label="the text, token by token">{spans}</div></main>'


def _content(token: str) -> str:
    # The marks come from the style sheet: what is copied from the page is the text itself.
    if not token:
        return '<i class="none"></i>'
    return escaped(token).replace("\n", '<i class="newline"></i>\n')


def _spoken(tau: float) -> str:
    return "not predicted" if math.isnan(tau) else f"temperature {number(tau)}"


def histogram(taus: list[float], scale: ColourScale) -> str:
    """How many tokens have which temperature."""
    known = [t for t in taus if not math.isnan(t)]
    if not known:
        return ""
    low, high = min(known), max(known)
    spread = high - low if high > low * (1 + 1e-6) else 0.1 * low
    low = low if high > low * (1 + 1e-6) else low - spread / 2
    counts = [0] * _BARS
    for tau in known:
        counts[min(int((tau - low) / spread * _BARS), _BARS - 1)] += 1
    bars = "".join(_bars(counts, low, spread, scale))
    axis = "".join(
        f'<text x="{x}" y="{_HEIGHT + 18}" text-anchor="{anchor}">{number(tau)}</text>'
        for x, anchor, tau in (
            (0, "start", low),
            (_WIDTH / 2, "middle", low + spread / 2),
            (_WIDTH, "end", low + spread),
        )
    )
    return (
        f'<section><h2>Distribution</h2><svg viewBox="0 -16 {_WIDTH} {_HEIGHT + 40}" role="img" '
        f'aria-label="Histogram of {len(known)} temperatures from {number(min(known))} to {number(max(known))}">'
        f'{bars}<path class="axis" d="M0 {_HEIGHT}H{_WIDTH}"/>{axis}'
        f'<text x="0" y="-4">tokens, up to {max(counts)} a bar</text></svg></section>'
    )


def _bars(counts: list[int], low: float, spread: float, scale: ColourScale) -> Iterator[str]:
    width = _WIDTH / _BARS
    for i, count in enumerate(counts):
        if count:
            left, right = (low + spread * k / _BARS for k in (i, i + 1))
            height = max(1.5, _HEIGHT * count / max(counts))
            yield (
                f'<rect class="bar {scale.of_tau((left + right) / 2)}" x="{i * width + 1:g}" '
                f'y="{_HEIGHT - height:.1f}" width="{width - 2:g}" height="{height:.1f}">'
                f"<title>{count} tokens from {number(left)} to {number(right)}</title></rect>"
            )


def extremes(tokens: Sequence[str], taus: list[float], scale: ColourScale) -> str:
    """The tokens of lowest and of highest temperature, in their context."""
    ranked = sorted((i for i, t in enumerate(taus) if not math.isnan(t)), key=taus.__getitem__)
    k = min(_EXTREMES, len(ranked) // 2)
    parts = (("Lowest temperatures", ranked[:k]), ("Highest temperatures", ranked[::-1][:k]))
    tables = "".join(
        f"<section><h2>{heading}</h2><table><thead><tr><th>τ</th><th>token, in its context</th></tr></thead>"
        f"<tbody>{''.join(_row(i, tokens, taus, scale) for i in chosen)}</tbody></table></section>"
        for heading, chosen in parts
    )
    return f'<div class="columns">{tables}</div>' if k else ""


def _row(i: int, tokens: Sequence[str], taus: list[float], scale: ColourScale) -> str:
    before = _flat("".join(tokens[max(0, i - _BEFORE) : i]))
    after = _flat("".join(tokens[i + 1 : i + 1 + _AFTER]))
    return (
        f"<tr><td>{number(taus[i])}</td><td><bdi>{escaped(before[-_CONTEXT:].lstrip())}</bdi>"
        f'<a href="#t{i}" class="{scale.of_tau(taus[i])}"><bdi>{escaped(shown(tokens[i]))}</bdi></a>'
        f"<bdi>{escaped(after[:_CONTEXT])}</bdi></td></tr>"
    )


def _flat(context: str) -> str:
    """On one line, each run of whitespace as one space."""
    return re.sub(r"\s+", " ", context)
