"""Looking up the classes that a checkpoint names."""

from collections.abc import Sequence
from typing import TypeVar

_Kind = TypeVar("_Kind")


def class_named(what: str, name: str, known: Sequence[type[_Kind]], instead: str) -> type[_Kind]:
    """The class of this name.

    Args:
        what: its kind, with the article, for the error.
        name: as in a checkpoint.
        known: classes that it may name.
        instead: what to type if it names another one.

    Raises:
        ValueError: it names another class.
    """
    for kind in known:
        if kind.__name__ == name:
            return kind
    raise ValueError(
        f"expected {what} of one of the classes {', '.join(kind.__name__ for kind in known)}, received one of "
        f"{name!r}. {instead}"
    )
