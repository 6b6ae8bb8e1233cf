"""Packages that only saving and loading need."""

import importlib
from types import ModuleType


def optional_module(name: str) -> ModuleType:
    """The module, imported now.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"expected the package {name.partition('.')[0]} for saving and loading, received none: it is not "
            "installed. pip install 'dro-temp[llm]'"
        ) from error
