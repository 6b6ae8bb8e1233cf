"""Packages that the command line needs and the library does not."""

import importlib
from typing import Any


def needed(module: str) -> Any:
    """The module, or an error that says what installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SystemExit(
            f"expected the package {module!r}, received a Python without it ({error}). "
            "Run: pip install 'dro-temp[llm]'"
        ) from None
