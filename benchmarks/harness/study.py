"""Many training runs: each kept when it is done, so that a study can be stopped and typed again."""

import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def kept(file: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The stored result of a run, or what it returns now; the file is whole or not there."""
    if not file.exists():
        result = run()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        partial.write_text(json.dumps(result, indent=1))
        os.replace(partial, file)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def name_of(*words: str, **options: float) -> str:
    """A file's name that says which run it holds."""
    return "-".join([*words, *(f"{k}={v:g}" for k, v in sorted(options.items()))])


def cell(values: Sequence[float], *, sign: str = "", digits: int = 1) -> str:
    """Mean and standard deviation over seeds; a dash where a run has no such number."""
    if any(math.isnan(value) for value in values):
        return "-"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.{digits}f} ± {spread:.{digits}f}"
