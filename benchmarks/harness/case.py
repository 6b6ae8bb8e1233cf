"""Measurements at one shape."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.memory import Peak
from benchmarks.harness.timing import ratios

MEGABYTE = 1e6


@dataclass
class Case:
    """Times, memory and losses of the contenders at one shape.

    Args:
        label: the shape in words.
        shape: its sizes.
        to: the contender that times are divided by.
        seconds: times of each contender, one for each round.
        peaks: peak memory of each contender.
        losses: first loss of each contender.
        failures: why a contender failed; says whether it only lacked memory.
    """

    label: str
    shape: tuple[int, ...]
    to: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, Peak] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str, to: str) -> float | None:
        """Median over rounds of one contender's time divided by another's."""
        if name not in self.seconds or to not in self.seconds:
            return None
        return ratios(self.seconds, to)[name]["median"]

    def scratch(self, name: str) -> float | None:
        """Megabytes that a step needs beside its gradients."""
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
        """For the results file: one record for each contender, without the times of single rounds."""
        times = ratios(self.seconds, self.to) if self.to in self.seconds else {}
        rows = []
        for name in dict.fromkeys([*self.seconds, *self.peaks, *self.failures]):
            row = {
                **times.get(name, {}),
                "peak_MB": self.peak(name),
                "scratch_MB": self.scratch(name),
                "loss": self.losses.get(name),
                "failure": self.failures.get(name),
            }
            rows.append({"contender": name, **{key: x for key, x in row.items() if x is not None}})
        return {"ratio_to": self.to, "contenders": rows}


def _cell(x: float | None, form: str) -> str:
    return f"{'-':>10}" if x is None else f"{x:{form}}"
