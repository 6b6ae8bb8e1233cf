"""Packages that the command line needs and the library does not, and what of several processes speaks."""

import os
from typing import Any

from dro_temp._optional import optional_module


def needed(module: str) -> Any:
    """The module, or an error that says what installs it."""
    return optional_module(module, "which the command line needs")


def say(what: str) -> None:
    """Print, once where a launcher started several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(what)
