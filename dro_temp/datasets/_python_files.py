"""Which source files of the standard library belong to which split."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.1, 0.1)

# Tests repeat what they test; the others are tables of numbers, or prose in one string.
LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)


def library() -> Path:
    """Folder of the standard library, also where a virtual environment runs."""
    return Path(sysconfig.get_path("stdlib"))


def sources(folder: Path) -> list[str]:
    """Paths of the files within the folder, in a fixed order."""
    found = (path.relative_to(folder) for path in folder.rglob("*.py"))
    kept = sorted(path.as_posix() for path in found if LEFT_OUT.isdisjoint(path.parts))
    if not kept:
        raise FileNotFoundError(
            f"expected Python's standard library as source files, received {folder}, which has none (a zipped or "
            "embedded Python). Run a Python from python.org, conda or your system's package manager."
        )
    return kept


def chosen(split: str, size: int, seed: int) -> list[tuple[str, str]]:
    """(path, text) of one split's files, in a random order, until its share of the characters is reached."""
    folder = library()
    left = round(size * SHARES[SPLITS.index(split)])
    mine = [name for name in sources(folder) if split_of(name, seed) == split]
    files: list[tuple[str, str]] = []
    for name, text in _texts(folder, sorted(mine, key=lambda name: _rank("order", seed, name))):
        files.append((name, text[:left]))
        left -= len(text)
        if left <= 0:
            break
    return files


def split_of(name: str, seed: int) -> str:
    """The split of a file: a matter of its path alone, so that other files change nothing."""
    place = int.from_bytes(_rank("split", seed, name)[:8], "big") / 2**64
    train, validation, _ = SHARES
    return "train" if place < train else "validation" if place < train + validation else "test"


def _texts(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    """The files that say something that no earlier one did."""
    seen = set()
    for name in names:
        try:
            text = (folder / name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):  # a few old files are Latin-1
            continue
        if text and text not in seen:
            seen.add(text)
            yield name, text + "\n"


def _rank(*key: object) -> bytes:
    """A place in a random order that depends on nothing but the key."""
    return hashlib.sha256(" ".join(map(str, key)).encode()).digest()
