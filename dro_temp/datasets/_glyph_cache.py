"""Rendered glyphs, kept in one file that is always whole."""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch

from dro_temp._files import default_root, whole_file
from dro_temp.datasets import _glyph_render
from dro_temp.datasets._glyph_render import SIDE, Glyphs, require

_FORMAT = 1  # raise it when the same fonts would give other images


def version(files: Sequence[Path]) -> str:
    """Sixteen hexadecimal digits that change when the images or their names would."""
    digest = hashlib.sha256(f"{_FORMAT} {SIDE} {unicodedata.unidata_version}".encode())
    for path in files:
        digest.update(f"\n{path.name}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def load(root: str | os.PathLike[str] | None = None) -> Glyphs:
    """Read the glyphs, or render and keep them.

    Args:
        root: folder of the cache; `default_root()` if None.

    Raises:
        ImportError: a package of the `recipes` extra is not installed.
        OSError: the folder cannot be written to.
    """
    files = _glyph_render.font_files()
    folder = default_root() if root is None else Path(root).expanduser()
    path = folder / f"glyphs-{version(files)}.npz"
    kept = _read(path)
    if kept is not None:
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
        glyphs = _glyph_render.render(files)
        _write(path, glyphs)
    except OSError as error:
        raise OSError(
            f"expected a folder for rendered glyphs that can be written to, received {folder} ({error}). "
            "Pass another one, for example GlyphCaptions(root='glyph-cache')."
        ) from error
    return glyphs


def _read(path: Path) -> Glyphs | None:
    """What the file holds, or None where it is missing or damaged."""
    numpy = require("numpy")
    try:
        # A zip archive without pickles: its checksums tell damage, and reading it runs no code.
        with open(path, "rb") as file, numpy.load(file, allow_pickle=False) as kept:
            images, codepoints, font, names = (kept[k] for k in ("images", "codepoints", "font", "names"))
        count = len(codepoints)
        whole = images.shape == (count, SIDE, SIDE) and images.dtype == numpy.uint8 and font.shape == (count,)
        if not whole or codepoints.ndim != 1:
            return None
        fonts = names[font].tolist()
        return Glyphs(torch.from_numpy(images), codepoints.tolist(), fonts)
    except Exception:  # damage comes in a dozen types: of zipfile, zlib, struct, numpy's header parser ...
        return None


def _write(path: Path, glyphs: Glyphs) -> None:
    numpy = require("numpy")
    names = sorted(set(glyphs.fonts))
    number = {name: i for i, name in enumerate(names)}
    with whole_file(path) as file:
        numpy.savez_compressed(
            file,
            images=glyphs.images.numpy(),
            codepoints=numpy.asarray(glyphs.codepoints, dtype=numpy.int64),
            font=numpy.asarray([number[name] for name in glyphs.fonts], dtype=numpy.int64),
            names=numpy.asarray(names, dtype=numpy.str_),
        )
