"""Text of any kind as HTML that only shows it."""

import html
import json
from typing import Any

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
