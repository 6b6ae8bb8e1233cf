"""Optional packages."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any


def optional_module(name: str, use: str, *, extra: str = "llm") -> Any:
    """The module, imported now, or an ImportError that says its use, "which draws progress bars", and its extra."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _lacks(name, use, extra, error) from error


def optional_folder(name: str, use: str, *, extra: str) -> Path:
    """The folder of a package whose files are wanted, not its code, which may need more: it is not imported."""
    spec = importlib.util.find_spec(name) if sys.modules.get(name, name) is not None else None
    if spec is None or not spec.submodule_search_locations:
        raise _lacks(name, use, extra, None)
    return Path(next(iter(spec.submodule_search_locations)))


def _lacks(name: str, use: str, extra: str, error: ImportError | None) -> ImportError:
    package, lacking = name.partition(".")[0], getattr(error, "name", None)
    inside = lacking is not None and lacking.partition(".")[0] != package
    received = f"one that needs {lacking}, which is missing" if inside else "no such package"
    return ImportError(
        f"expected the package {package}, {use}, received {received}. Run: pip install 'dro-temp[{extra}]'"
    )
