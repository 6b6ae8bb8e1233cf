"""Files that are whole or not there, and the folder where those lie that can be made again."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def default_root() -> Path:
    """`$XDG_CACHE_HOME/dro_temp`, or `~/.cache/dro_temp`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dro_temp"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write beside the file, then put it in place in one step: readers see all of it or nothing.

    Args:
        path: replaced when the block ends without an error.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
