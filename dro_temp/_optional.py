"""Optional packages."""

import importlib
from typing import Any


def optional_module(name: str, use: str, *, extra: str = "llm") -> Any:
    """The module, imported now.

    Args:
        name: of the module.
        use: its purpose, for the error: "which draws progress bars".
        extra: the extra of this package that installs it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"expected the package {name.partition('.')[0]}, {use}, received no such package. "
            f"Run: pip install 'dro-temp[{extra}]'"
        ) from error
