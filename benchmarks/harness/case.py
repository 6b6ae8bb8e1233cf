"""What came out for one shape."""

from dataclasses import dataclass, field
from typing import Any

from timing import ratios

from harness.memory import Peak

MEGABYTE = 1e6


@dataclass
class Case:
    """Times, memory and losses of the contenders at one shape.

    Args:
        label: the shape in words.
        shape: and in numbers.
        to: name of the contender that ratios of time are taken to.
    """

    label: str
    shape: tuple[int, ...]
    to: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, Peak] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    #: What a contender stumbled over; the message says whether only memory was missing.
    failures: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str, to: str) -> float | None:
        """Median over rounds of a time as a multiple of another."""
        if name not in self.seconds or to not in self.seconds:
            return None
        return ratios(self.seconds, to)[name]["median"]

    def scratch(self, name: str) -> float | None:
        """Megabytes of a step that are gone after it."""
        return self.peaks[name].scratch / MEGABYTE if name in self.peaks else None

    def peak(self, name: str) -> float | None:
        """Megabytes of a step, gradients included."""
        return self.peaks[name].peak / MEGABYTE if name in self.peaks else None

    def table(self) -> str:
        """One line per contender, in the order in which they were measured."""
        names = list(dict.fromkeys([*self.seconds, *self.peaks, *self.failures]))
        width = max(map(len, names), default=0)
        times = ratios(self.seconds, self.to) if self.to in self.seconds else {}
        lines = [
            f"{'':{width}}  {'ratio to ' + self.to + ' [quartiles]':>30}"
            f"  {'time (ms)':>10}  {'peak (MB)':>10}  {'scratch':>10}  {'loss':>10}"
        ]
        for name in names:
            time = [f"{'-':>30}", f"{'-':>10}"]
            if name in times:
                row = times[name]
                time[0] = f"{row['median']:14.3f} [{row['q1']:.3f}, {row['q3']:.3f}]".rjust(30)
                time[1] = f"{row['ms']:10.2f}"
            numbers = (self.peak(name), self.scratch(name), self.losses.get(name))
            cells = [*time, *(_cell(x, f"10.{1 if k < 2 else 4}f") for k, x in enumerate(numbers))]
            failed = f"  {self.failures[name]}" if name in self.failures else ""
            lines.append(f"{name:{width}}  {'  '.join(cells)}{failed}")
        return "\n".join(lines)

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "label": self.label,
            "shape": self.shape,
            "to": self.to,
            "ratios": ratios(self.seconds, self.to) if self.to in self.seconds else {},
            "seconds": self.seconds,
            "bytes": {name: peak.asdict() for name, peak in self.peaks.items()},
            "losses": self.losses,
            "failures": self.failures,
        }


def _cell(x: float | None, form: str) -> str:
    return f"{'-':>10}" if x is None else f"{x:{form}}"
