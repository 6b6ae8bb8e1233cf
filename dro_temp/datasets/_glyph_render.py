"""Pictures of the characters in the fonts that matplotlib ships."""

import contextlib
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from dro_temp._optional import optional_module

SIDE = 32  # pixels, height and width of an image
EM = 24  # pixels, size of a font in which accented capitals and descenders fit without being scaled
BASELINE = 25  # row on which letters stand: the middle of a capital is then the middle of the image
MARGIN = 1  # pixels left free on every side

# The Computer Modern symbol fonts put TeX's symbols at the codes of letters, STIXNonUni consists of private-use
# codes, and LastResort draws one box for all characters of a script.
LEFT_OUT = ("cmex", "cmmi", "cmsy", "STIXNonUni", "LastResort")


class Glyphs(NamedTuple):
    """Images of characters, sorted by font and then by code point."""

    images: UInt8[Tensor, "n side side"]
    codepoints: list[int]
    fonts: list[str]


def require(module: str) -> Any:
    """Import a package of the `recipes` extra, or say how to install it."""
    return optional_module(module, "which GlyphCaptions renders its images with", extra="recipes")


def font_files() -> list[Path]:
    """The TrueType fonts in use, sorted by name."""
    folder = Path(require("matplotlib").get_data_path()) / "fonts" / "ttf"
    return sorted(path for path in folder.glob("*.ttf") if not path.name.startswith(LEFT_OUT))


def _means(glyph: str, character: str) -> bool:
    """Whether a font's own name for a glyph ("alpha", "uni03B1") does not contradict its code point.

    TeX's text fonts have an inverted exclamation mark at "<". Names that the Adobe glyph list does not know, or
    maps to private use, contradict nothing.
    """
    listed = require("fontTools.agl").toUnicode(glyph)
    if not listed or unicodedata.category(listed[0]) == "Co":
        return True
    return unicodedata.normalize("NFKC", listed) == unicodedata.normalize("NFKC", character)


def characters(path: Path) -> list[str]:
    """The named, visible characters that a font covers, in order of their code points."""
    # Categories C: control, format, surrogate, private use, unassigned; Z: separators.
    with require("fontTools.ttLib").TTFont(path, lazy=True) as font:
        covered = sorted((font.getBestCmap() or {}).items())
    return [
        chr(code)
        for code, glyph in covered
        if glyph != ".notdef"
        and unicodedata.category(chr(code))[0] not in "CZ"
        and unicodedata.name(chr(code), "")
        and _means(glyph, chr(code))
    ]


def _ink(character: str, font: Any) -> tuple[Any, int] | None:
    """The smallest picture that holds the character, and its top against the baseline; None if it is blank."""
    left, top, right, bottom = font.getbbox(character, anchor="ls")
    canvas = require("PIL.Image").new("L", (int(right - left) + 2, int(bottom - top) + 2))
    draw = require("PIL.ImageDraw").Draw(canvas)
    draw.text((1 - left, 1 - top), character, fill=255, font=font, anchor="ls")
    box = canvas.getbbox()
    return None if box is None else (canvas.crop(box), int(box[1] - 1 + top))


def draw(character: str, font_at: Callable[[int], Any]) -> bytes | None:
    """The character on SIDE x SIDE pixels, or None if it is blank.

    All characters have the same font size and baseline, so that "o" and "O", and comma and apostrophe, differ;
    what would not fit is moved, and what cannot fit is scaled. The ink is centred horizontally.
    """
    room, em = SIDE - 2 * MARGIN, EM
    ink = _ink(character, font_at(em))
    while ink is not None and max(ink[0].size) > room and em > 1:
        em = max(1, min(em - 1, em * (room + 1) // max(ink[0].size)))
        ink = _ink(character, font_at(em))
    if ink is None:
        return None
    picture, top = ink
    width, height = picture.size
    row = min(max(BASELINE + top, MARGIN), SIDE - MARGIN - height)
    image = require("PIL.Image").new("L", (SIDE, SIDE))
    image.paste(picture, ((SIDE - width) // 2, row))
    return bytes(image.tobytes())


def _render_font(path: Path) -> Iterator[tuple[str, bytes]]:
    module = require("PIL.ImageFont")
    opened: dict[int, Any] = {}

    def font_at(em: int) -> Any:
        # The basic layout shows characters as they are, and does not depend on a library that may be missing.
        if em not in opened:
            opened[em] = module.truetype(str(path), em, layout_engine=module.Layout.BASIC)
        return opened[em]

    box = draw(chr(0x10FFFF), font_at)  # never assigned: what the font shows for characters that it lacks
    for character in characters(path):
        image = draw(character, font_at)
        if image is not None and image != box:
            yield character, image


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    console = require("rich.console").Console(stderr=True)
    with require("rich.progress").Progress(console=console, transient=True) as bar:
        task = bar.add_task("rendering glyphs (once)", total=total)
        yield lambda: bar.advance(task)


def render(files: Sequence[Path]) -> Glyphs:
    """Every character of every font."""
    images, codepoints, fonts = bytearray(), [], []
    with _progress(len(files)) as advance:
        for path in files:
            for character, image in _render_font(path):
                images += image
                codepoints.append(ord(character))
                fonts.append(path.stem)
            advance()
    pixels = torch.frombuffer(images, dtype=torch.uint8) if images else torch.empty(0, dtype=torch.uint8)
    return Glyphs(rearrange(pixels, "(glyph y x) -> glyph y x", y=SIDE, x=SIDE), codepoints, fonts)
