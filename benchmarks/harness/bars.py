"""Limits that measurements should stay under."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A measured number that should not exceed a limit.

    Args:
        text: what is measured.
        value: the number, or None if it was not measured.
        limit: what it must not exceed.
        aim: a stricter limit that would be better still.
        unit: printed behind numbers.
    """

    text: str
    value: float | None
    limit: float
    aim: float | None = None
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """Whether the limit, and the aim, are met."""
        if self.value is None:
            return "not measured"
        if self.value > self.limit:
            return "NOT MET"
        return "met" if self.aim is None or self.value > self.aim else "met, and its aim"

    def __str__(self) -> str:
        value = "-" if self.value is None else f"{self.value:.3g}{self.unit}"
        aim = "" if self.aim is None else f" (aim {self.aim:.3g}{self.unit})"
        return f"{self.text}: {value}, bar {self.limit:.3g}{self.unit}{aim}: {self.verdict}"

    def asdict(self) -> dict[str, Any]:
        """For the results file."""
        return {**asdict(self), "verdict": self.verdict}


def share(a: float | None, b: float | None) -> float | None:
    """One number as a multiple of another, if both were measured."""
    return None if a is None or not b else a / b
