"""Packages that the command line needs and the library does not."""

from typing import Any

from dro_temp._optional import optional_module


def needed(module: str) -> Any:
    """The module, or an error that says what installs it."""
    return optional_module(module, "which the command line needs")
