"""Pictures of the characters in the fonts that matplotlib ships, rendered once and cached in one file."""

import hashlib
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from dro_temp._optional import optional_module
from dro_temp.datasets._samples import cached, hashed

SIDE = 32  # pixels, height and width of an image
EM = 24  # pixels, size of a font in which accented capitals and descenders fit without being scaled
BASELINE = 25  # row on which letters stand: the middle of a capital is then the middle of the image
MARGIN = 1  # pixels left free on every side

# The Computer Modern symbol fonts put TeX's symbols at the codes of letters, STIXNonUni consists of private-use
# codes, and LastResort draws one box for all characters of a script.
LEFT_OUT = ("cmex", "cmmi", "cmsy", "STIXNonUni", "LastResort")

_FORMAT = 1  # raise it when the same fonts would give other images

require = partial(optional_module, use="which GlyphCaptions renders its images with", extra="recipes")


class Glyphs(NamedTuple):
    """Images of characters, sorted by font and then by code point."""

    images: UInt8[Tensor, "n side side"]
    codepoints: list[int]
    fonts: list[str]


def font_files() -> list[Path]:
    """The TrueType fonts in use, sorted by name."""
    folder = Path(require("matplotlib").get_data_path()) / "fonts" / "ttf"
    return sorted(path for path in folder.glob("*.ttf") if not path.name.startswith(LEFT_OUT))


def load(root: str | os.PathLike[str] | None = None) -> Glyphs:
    """Read the glyphs from a folder, or render them into it; raises OSError if it cannot be written to."""
    files = font_files()

    def make(file: BinaryIO) -> Glyphs:
        glyphs = render(files)
        write(file, glyphs)
        return glyphs

    return cached(root, f"glyphs-{version(files)}.npz", read, make, "GlyphCaptions(root='glyph-cache')")


def version(files: Sequence[Path]) -> str:
    """Sixteen hexadecimal digits that change when the images or their names would."""
    fonts = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashed(_FORMAT, SIDE, unicodedata.unidata_version, *fonts).hex()[:16]


def read(path: Path) -> Glyphs | None:
    """Content of the file, or None if it is missing or damaged."""
    numpy = require("numpy")
    try:
        # A zip archive without pickles: its checksums reveal damage, and reading it runs no code.
        with open(path, "rb") as file, numpy.load(file, allow_pickle=False) as arrays:
            images, codepoints, font, names = (arrays[k] for k in ("images", "codepoints", "font", "names"))
        (count,) = codepoints.shape
        whole = images.shape == (count, SIDE, SIDE) and images.dtype == numpy.uint8 and font.shape == (count,)
        return Glyphs(torch.from_numpy(images), codepoints.tolist(), names[font].tolist()) if whole else None
    except Exception:  # damage comes in a dozen types: of zipfile, zlib, struct, numpy's header parser ...
        return None


def write(file: Any, glyphs: Glyphs) -> None:
    """Write the glyphs into an open file."""
    numpy = require("numpy")
    names, font = numpy.unique(numpy.asarray(glyphs.fonts, dtype=numpy.str_), return_inverse=True)
    codepoints = numpy.asarray(glyphs.codepoints, dtype=numpy.int64)
    images = glyphs.images.numpy()
    numpy.savez_compressed(file, images=images, codepoints=codepoints, font=font, names=names)


def render(files: Sequence[Path]) -> Glyphs:
    """Every character of every font."""
    images, codepoints, fonts = bytearray(), [], []
    console = require("rich.console").Console(stderr=True)
    bar = {"console": console, "transient": True, "disable": not sys.stderr.isatty()}
    for path in require("rich.progress").track(files, "rendering glyphs (once)", **bar):
        for character, image in _render_font(path):
            images += image
            codepoints.append(ord(character))
            fonts.append(path.stem)
    pixels = torch.frombuffer(images, dtype=torch.uint8) if images else torch.empty(0, dtype=torch.uint8)
    return Glyphs(rearrange(pixels, "(glyph y x) -> glyph y x", y=SIDE, x=SIDE), codepoints, fonts)


def _render_font(path: Path) -> Iterator[tuple[str, bytes]]:
    """The named, visible characters that a font covers, in order of their code points."""
    module = require("PIL.ImageFont")
    # The basic layout shows characters as they are, and does not depend on a library that may be missing.
    font_at = cache(lambda em: module.truetype(str(path), em, layout_engine=module.Layout.BASIC))
    box = _draw(chr(0x10FFFF), font_at)  # never assigned: what the font shows for characters that it lacks
    with require("fontTools.ttLib").TTFont(path, lazy=True) as font:
        covered = sorted((font.getBestCmap() or {}).items())
    for code, glyph in covered:
        image = _draw(chr(code), font_at) if _is_shown(chr(code), glyph) else None
        if image is not None and image != box:
            yield chr(code), image


def _is_shown(character: str, glyph: str) -> bool:
    """Whether a character is visible and named, and the glyph's own name ("alpha", "uni03B1") does not contradict it.

    TeX's text fonts have an inverted exclamation mark at "<". Names that the Adobe glyph list does not know, or
    maps to private use, contradict nothing.
    """
    # Categories C: control, format, surrogate, private use, unassigned; Z: separators.
    unseen = glyph == ".notdef" or unicodedata.category(character)[0] in "CZ"
    if unseen or not unicodedata.name(character, ""):
        return False
    listed = require("fontTools.agl").toUnicode(glyph)
    if not listed or unicodedata.category(listed[0]) == "Co":
        return True
    return unicodedata.normalize("NFKC", listed) == unicodedata.normalize("NFKC", character)


def _draw(character: str, font_at: Callable[[int], Any]) -> bytes | None:
    """The character on SIDE x SIDE pixels, or None if it is blank.

    All characters have the same font size and baseline, so that "o" and "O", and comma and apostrophe, differ;
    what would not fit is moved, and what cannot fit is scaled. The ink is centred horizontally.
    """
    new_image, draw = require("PIL.Image").new, require("PIL.ImageDraw").Draw
    room, em = SIDE - 2 * MARGIN, EM
    while True:
        left, top, right, bottom = font_at(em).getbbox(character, anchor="ls")
        canvas = new_image("L", (int(right - left) + 2, int(bottom - top) + 2))
        draw(canvas).text((1 - left, 1 - top), character, fill=255, font=font_at(em), anchor="ls")
        box = canvas.getbbox()
        if box is None:
            return None
        ink = canvas.crop(box)
        if max(ink.size) <= room or em == 1:
            break
        em = max(1, min(em - 1, em * (room + 1) // max(ink.size)))
    row = min(max(BASELINE + int(box[1] - 1 + top), MARGIN), SIDE - MARGIN - ink.height)
    image = new_image("L", (SIDE, SIDE))
    image.paste(ink, ((SIDE - ink.width) // 2, row))
    return bytes(image.tobytes())
