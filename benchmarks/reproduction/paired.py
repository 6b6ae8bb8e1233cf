"""Paired comparisons over seeds, corrected for their number."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Paired:
    """One arm against another on the same seeds and divisions of the data.

    Args:
        mean: mean difference.
        interval: its 95 % interval (t).
        effect: Cohen's d of the differences, mean over standard deviation.
        p: of the paired t-test, two-sided, after Holm's correction.
    """

    mean: float
    interval: tuple[float, float]
    effect: float
    p: float

    def __str__(self) -> str:
        """In a table."""
        low, high = self.interval
        return f"{self.mean:+.2f} [{low:+.2f}, {high:+.2f}], d {self.effect:+.1f}, p {self.p:.2g}"


def against(ours: Sequence[float], others: Mapping[str, Sequence[float]]) -> dict[str, Paired]:
    """Our arm minus each of the others, which make up one family of tests."""
    found = {}
    for name, theirs in others.items():
        gains = [a - b for a, b in zip(ours, theirs, strict=True)]
        mean, spread = statistics.mean(gains), statistics.stdev(gains)
        test = stats.ttest_rel(ours, theirs)
        low, high = test.confidence_interval(0.95)
        effect = mean / spread if spread else float("inf") * (1 if mean > 0 else -1) if mean else 0.0
        found[name] = (mean, (float(low), float(high)), effect, float(test.pvalue))
    corrected = holm({name: values[3] for name, values in found.items()})
    return {name: Paired(mean, ci, d, corrected[name]) for name, (mean, ci, d, _) in found.items()}


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction."""
    least, corrected = 0.0, {}
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = least
    return corrected
