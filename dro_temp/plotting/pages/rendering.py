"""Web pages that need nothing else: colours of temperatures, and the template that they share."""

import base64
import hashlib
import math
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import torch

_SHADES = 6  # on either side of the middle
_TAIL = 0.02  # share of items at either end that share the strongest colour
_BARS = 40  # of the histogram

# Controls, surrogates and codes that are not characters; marks that reverse what follows them.
_UNFIT = ((0x7F, 0x9F), (0xD800, 0xDFFF), (0xFDD0, 0xFDEF), (0x202A, 0x202E), (0x2066, 0x2069))
_HARMLESS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_HARMLESS |= {code: 0xFFFD for first, last in _UNFIT for code in range(first, last + 1)}
_HARMLESS |= {plane + code: 0xFFFD for plane in range(0, 0x110000, 0x10000) for code in (0xFFFE, 0xFFFF)}


class ColourScale:
    """Blue below the median of the temperatures, orange above, both stronger further away, up to the tails."""

    #: Names of the classes, from the lowest temperatures to the highest.
    classes = tuple(f"c{i}" for i in range(2 * _SHADES + 1))

    def __init__(self, taus: list[float]) -> None:
        ranked = sorted(taus) or [1.0]
        self.low, self.middle, self.high = (
            ranked[round(q * (len(ranked) - 1))] for q in (_TAIL, 0.5, 1 - _TAIL)
        )

    def class_of(self, tau: float) -> str:
        """Class of a temperature; the empty string for NaN."""
        if math.isnan(tau):
            return ""
        distance = math.log(tau / self.middle)
        end = math.log((self.high if distance > 0 else self.low) / self.middle)
        share = min(1.0, distance / end) if abs(end) > 1e-4 else 0.0  # equal up to rounding: one colour
        return self.classes[_SHADES + round(math.copysign(share * _SHADES, distance))]


def number(tau: float) -> str:
    """Three significant digits."""
    return f"{tau:#.3g}" if tau < 1000 else f"{tau:.0f}"


def bars(known: list[float]) -> list[tuple[float, float, int]]:
    """The ends of each bar of the histogram of ascending temperatures, and how many lie in it."""
    low, high = known[0], known[-1]
    if high <= low * (1 + 1e-6):
        low, high = 0.95 * low, 1.05 * low
    counts, edges = torch.histogram(torch.tensor(known, dtype=torch.float64), _BARS, range=(low, high))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.int().tolist(), strict=True))


def harmless(text: str) -> str:
    """The text, with pictures in place of what HTML cannot hold or what would reverse it; newlines and tabs stay."""
    return text.translate(_HARMLESS)


def rendered(package: str, cards: Any, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """A page whose template, style and script are the files page.html, page.css and page.js of a package.

    Args:
        package: its name.
        cards: what the script shows when one points at an item, as JSON has it.
        filters: further filters of the template.
        **values: what the template shows: a `title`, a `scale`, ...
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # a dependency of torch

    def read(name: str) -> str:
        own = name.startswith("page.")
        return resources.files(package if own else __package__).joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda x: harmless(x) if type(x) is str else x,
    )
    environment.filters |= {"number": number, **filters}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    script = read("cards.js") + read("page.js")
    return environment.get_template("page.html").render(
        cards=cards,
        style=read("base.css") + read("page.css"),
        script=script,
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
