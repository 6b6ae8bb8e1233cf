"""Optional packages."""

import importlib
from typing import Any


def optional_module(name: str, use: str, *, extra: str = "llm") -> Any:
    """The module, imported now, or an ImportError that says its use, "which draws progress bars", and its extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"expected the package {name.partition('.')[0]}, {use}, received no such package. "
            f"Run: pip install 'dro-temp[{extra}]'"
        ) from error
