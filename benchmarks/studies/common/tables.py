"""Cells and rows of Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def cell(statistic: Sequence[float | None], *, sign: str = "", digits: int = 1) -> str:
    """Mean and standard deviation over seeds; a dash where they are undefined."""
    mean, std = statistic
    return "-" if mean is None else f"{mean:{sign}.{digits}f} ± {std:.{digits}f}"


def number(value: float | None, *, digits: int = 1) -> str:
    """A number; a dash where it is undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


def cells(record: Mapping[str, Any], **digits: int) -> list[str]:
    """Metrics of a record, each with so many decimals; empty where the record lacks it."""
    return [cell(record[name], digits=d) if name in record else "" for name, d in digits.items()]


def named(options: Mapping[str, float]) -> str:
    """Options and their values."""
    return ", ".join(f"{key} {value:g}" for key, value in options.items())


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table whose first columns hold words and whose others hold numbers."""
    align = "|" + "---|" * words + "---:|" * (len(header) - words)
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], align, *lines[1:]])
