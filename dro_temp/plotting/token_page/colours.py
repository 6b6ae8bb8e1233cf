"""From temperatures to colours: blue below the median, orange above, both stronger further away."""

import math
from dataclasses import dataclass

_STEPS = 6  # shades on either side of the middle
_STRONGEST = 75  # per cent of the colour; the text on it must stay readable
_TAIL = 0.02  # share of tokens at either end that share the strongest colour


@dataclass(frozen=True)
class ColourScale:
    """Where the colours change.

    Args:
        low: temperature from which on down the blue is strongest.
        middle: the median, without colour.
        high: temperature from which on up the orange is strongest.
    """

    low: float
    middle: float
    high: float

    #: Names of the classes, from the lowest temperatures to the highest.
    classes = tuple(f"c{i}" for i in range(2 * _STEPS + 1))

    @classmethod
    def of(cls, taus: list[float]) -> "ColourScale":
        """The scale of these temperatures; of temperature 1 where there are none."""
        ranked = sorted(taus) or [1.0]
        low, middle, high = (ranked[round(q * (len(ranked) - 1))] for q in (_TAIL, 0.5, 1 - _TAIL))
        return cls(low, middle, high)

    def of_tau(self, tau: float) -> str:
        """Class of a temperature; of none, the empty string."""
        if math.isnan(tau):
            return ""
        distance = math.log(tau / self.middle)
        end = math.log((self.high if distance > 0 else self.low) / self.middle)
        share = min(1.0, distance / end) if abs(end) > 1e-4 else 0.0  # what differs by rounding looks alike
        return self.classes[_STEPS + round(math.copysign(share * _STEPS, distance))]

    def style(self) -> str:
        """The classes as a style sheet."""
        return "".join(_rule(name, i - _STEPS) for i, name in enumerate(self.classes))


def _rule(name: str, step: int) -> str:
    colour = f"var(--{'warm' if step > 0 else 'cool'})"
    mixed = f"color-mix(in srgb, {colour} {abs(step) * _STRONGEST / _STEPS:g}%, transparent)"
    return f".{name} {{ background: {mixed}; fill: {mixed}; }}\n"
