"""Results as small JSON files that are easy to read and to compare: one line for each record.

A file has a title and named sections; a run replaces its own section and leaves the others alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


def save(file: Path, title: str, section: str, content: Mapping[str, Any]) -> None:
    """Write one section of a results file, replacing an earlier version of that section."""
    sections = load(file) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    text = dumps({"title": title, "sections": sections | {section: content}})
    file.write_text(f"{text}\n", encoding="utf-8")


def load(file: Path) -> dict[str, dict[str, Any]]:
    """Sections of a results file, by name."""
    sections: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["sections"]
    return sections


def dumps(value: Any, indent: str = "") -> str:
    """JSON with one line for each item of a list and for each mapping of plain values.

    Numbers are rounded to eight significant digits; NaN and infinity become null.
    """
    inner = indent + " "
    if isinstance(value, Mapping) and not all(map(_is_plain, value.values())):
        lines = [
            f"{inner}{json.dumps(str(k), ensure_ascii=False)}: {dumps(v, inner)}" for k, v in value.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and not all(map(_is_scalar, value)):
        return "[\n" + ",\n".join(f"{inner}{_line(item)}" for item in value) + f"\n{indent}]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(_rounded(value), ensure_ascii=False, allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, (Mapping, Sequence)) or isinstance(value, str)


def _is_plain(value: Any) -> bool:
    """A scalar, or a list of scalars."""
    return _is_scalar(value) or (not isinstance(value, Mapping) and all(map(_is_scalar, value)))
