"""What all reports share: tables in Markdown, plain numbers, and the recovered share of the gain."""

import dataclasses
import math
import re
from typing import Any, Generic, Protocol, TypeVar

SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # quantiles of the temperatures that are reported
TAU_TITLES = ("τ mean", "τ 5 % / 50 % / 95 %")

_SMALLEST_GAIN = 1e-6  # relative to the loss: below it a share of the gain is a ratio of rounding errors


class Report:
    """Base of the report dataclasses: `_lines` are the cells of a table, the header's first."""

    def _lines(self) -> list[list[str]]:
        raise NotImplementedError

    def _heading(self) -> str:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self._heading()}\n\n{self.table()}"

    def asdict(self) -> dict[str, Any]:
        """Plain numbers, strings, tuples and dicts, for JSON."""
        plain: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]  # subclasses are dataclasses
        return plain

    def table(self) -> str:
        """A Markdown table, aligned to be read as plain text too."""
        return aligned(self._lines())

    def _repr_markdown_(self) -> str:
        """The same in a notebook; names are shown as text, whatever they hold."""
        table = aligned([[_as_text(cell) for cell in line] for line in self._lines()])
        return f"{_as_text(self._heading())}\n\n{table}"


def _as_text(text: str) -> str:
    """With character references in place of what Markdown or HTML would read."""
    return re.sub(r"[^\w\s.,:;/%()=+–-]|_", lambda mark: f"&#{ord(mark[0])};", text)


def aligned(lines: list[list[str]]) -> str:
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    ruler = ["-" * first, *("-" * (width - 1) + ":" for width in rest)]
    form = " | ".join([f"| {{:<{first}}}", *(f"{{:>{width}}}" for width in rest)]) + " |"
    return "\n".join(form.format(*line) for line in (lines[0], ruler, *lines[1:]))


class _Named(Protocol):
    @property
    def name(self) -> str: ...


S = TypeVar("S", bound=_Named)


class Comparison(Report, Generic[S]):
    """A report of several ways to choose temperatures, to be read by their names."""

    schemes: tuple[S, ...]

    def __getitem__(self, name: str) -> S:
        """A scheme by its name.

        Raises:
            KeyError: there is none of that name.
        """
        by_name = {scheme.name: scheme for scheme in self.schemes}
        if name not in by_name:
            raise KeyError(f"expected one of {', '.join(by_name)}, received {name!r}. Pass one of those.")
        return by_name[name]


def tau_cells(mean: float, quantiles: dict[float, float]) -> list[str]:
    """Mean and quantiles of temperatures, below `TAU_TITLES`."""
    return [f"{mean:.3f}", " / ".join(f"{quantiles[share]:.3f}" for share in (0.05, 0.5, 0.95))]


def recovered_share(loss: float, constant: float, optimum: float) -> float:
    """Share of the optimum's gain over the best constant that `loss` recovers; NaN where there is nothing to gain."""
    gain = constant - optimum
    return (constant - loss) / gain if gain > _SMALLEST_GAIN * max(abs(constant), 1e-30) else math.nan


def share_cell(share: float, gain: float) -> str:
    """The share in percent; a dash where the attainable gain, to the digits of the tables' gaps, is zero."""
    return f"{100 * share:.1f}" if math.isfinite(share) and round(gain, 4) > 0 else "–"
