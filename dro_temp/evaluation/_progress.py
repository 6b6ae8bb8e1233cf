"""A bar where somebody wants one."""

from collections.abc import Iterable, Sized
from typing import TypeVar

from dro_temp._optional import optional_module

T = TypeVar("T")


def shown(parts: Iterable[T], title: str | None, total: int | None = None) -> Iterable[T]:
    """The same parts, with a progress bar while they are taken.

    Args:
        parts: what is worked on, one after the other.
        title: what the bar says; None for no bar.
        total: how many there are, where `parts` does not know.

    Raises:
        ImportError: a bar without rich.
    """
    if title is None:
        return parts
    progress = optional_module("rich.progress", "which draws bars where progress=True", extra="recipes")
    total = len(parts) if total is None and isinstance(parts, Sized) else total
    tracked: Iterable[T] = progress.track(parts, description=title, total=total)
    return tracked
