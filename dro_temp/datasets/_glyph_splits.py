"""Which glyph belongs to which split."""

import hashlib
from collections import Counter

from dro_temp.datasets._glyph_render import Glyphs

SPLITS = ("train", "val_seen", "val_unseen", "test_seen", "test_unseen")

# Fonts by the beginning of their names. See GlyphCaptions for why these.
TEST_FONTS = ("STIX", "DejaVuSans-BoldOblique")
VAL_FONTS = ("cm", "DejaVuSansMono-Bold")

# Shares of all images whose names are held out.
TEST_UNSEEN, VAL_UNSEEN = 0.10, 0.035


def _rank(*key: object) -> bytes:
    """A place in a random order that depends on nothing but the key: not on other samples, nor on a generator."""
    return hashlib.sha256(" ".join(map(str, key)).encode()).digest()


def part(font: str) -> str:
    """`train`, `val` or `test`."""
    if font.startswith(TEST_FONTS):
        return "test"
    return "val" if font.startswith(VAL_FONTS) else "train"


def unseen(codepoints: list[int], seed: int) -> dict[int, str]:
    """Held-out names (as code points) and their splits: whole names, until the shares of images are reached."""
    count = Counter(codepoints)
    order = sorted(count, key=lambda code: _rank("name", seed, code))
    held, taken = {}, 0
    for code in order:
        if taken >= (TEST_UNSEEN + VAL_UNSEEN) * len(codepoints):
            break
        held[code] = "test_unseen" if taken < TEST_UNSEEN * len(codepoints) else "val_unseen"
        taken += count[code]
    return held


def divide(glyphs: Glyphs, seed: int) -> dict[str, list[int]]:
    """Rows of `glyphs` in each split, for all of the training samples."""
    held = unseen(glyphs.codepoints, seed)
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, (code, font) in enumerate(zip(glyphs.codepoints, glyphs.fonts, strict=True)):
        where = part(font)
        rows[held.get(code) or (where if where == "train" else f"{where}_seen")].append(row)
    pixels = glyphs.images.numpy()
    trained = {(glyphs.codepoints[row], pixels[row].tobytes()) for row in rows["train"]}
    for split in ("val_seen", "test_seen"):
        rows[split] = [
            row for row in rows[split] if (glyphs.codepoints[row], pixels[row].tobytes()) not in trained
        ]
    return restrict(rows, glyphs.codepoints)


def shrink(rows: dict[str, list[int]], glyphs: Glyphs, seed: int, size: int) -> dict[str, list[int]]:
    """The splits that belong to a random `size` of the training samples; smaller subsets lie in larger ones."""
    ranked = sorted(
        rows["train"], key=lambda row: _rank("sample", seed, glyphs.fonts[row], glyphs.codepoints[row])
    )
    return restrict(rows | {"train": sorted(ranked[:size])}, glyphs.codepoints)


def restrict(rows: dict[str, list[int]], codepoints: list[int]) -> dict[str, list[int]]:
    """Leave only names that occur in train in the splits of seen names."""
    names = {codepoints[row] for row in rows["train"]}
    return {
        split: [row for row in found if codepoints[row] in names] if split.endswith("_seen") else found
        for split, found in rows.items()
    }
