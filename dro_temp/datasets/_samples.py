"""What the data sets share: random orders that depend on keys alone, checks, and cached files."""

import hashlib
import operator
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dro_temp._checks import check_choice, check_count
from dro_temp._files import default_root, whole_file

_T = TypeVar("_T")


def hashed(*key: object) -> bytes:
    """A place in a random order that depends on the key alone: not on other samples, nor on a generator."""
    return hashlib.sha256(" ".join(map(str, key)).encode()).digest()


def check_split(split: Any, splits: Iterable[str], seed: Any) -> None:
    """Raise unless the split is one of these, and the seed an int."""
    check_choice("split", split, splits)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"expected seed as an int, received {type(seed).__name__} ({seed!r}). Pass seed=0.")


def check_size(size: int, available: int, what: str) -> int:
    """The size; raise unless it is in [1, available]."""
    if check_count("size", size) > available:
        raise ValueError(
            f"expected size of at most {available} {what}, received size={size}. Leave size out to use all."
        )
    return size


def check_number(index: Any, count: int, what: str = "sample") -> int:
    """The number of a sample as an int; raise IndexError unless it is in [0, count)."""
    index = operator.index(index)
    if not 0 <= index < count:
        raise IndexError(
            f"expected a {what} number from 0 to {count - 1}, received {index}. Count from 0 to len(dataset) - 1; "
            "for the last one type dataset[len(dataset) - 1]."
        )
    return int(index)


def cached(
    root: str | os.PathLike[str] | None,
    name: str,
    read: Callable[[Path], _T | None],
    make: Callable[[BinaryIO], _T],
    example: str,
) -> _T:
    """What is in a file of the folder `root`, by default the user's cache; where `read` finds none, `make` writes it.

    The file appears as a whole. The example is of a call with another folder.
    """
    path = (default_root() if root is None else Path(root).expanduser()) / name
    found = read(path)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            return make(file)
    except OSError as error:
        raise OSError(
            f"expected a folder to write {name} to, received {path.parent} ({error}). Pass another one: {example}."
        ) from error
