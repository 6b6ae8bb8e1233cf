"""Paired comparisons over seeds, with Holm's correction for several tests."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy import stats


@dataclass(frozen=True)
class Paired:
    """One method minus another on the same seeds and data splits.

    Args:
        mean: mean difference.
        std: standard deviation of the differences.
        interval: 95 % confidence interval of the mean (t distribution).
        p: p-value of the paired t-test, two-sided.
        seeds: number of differences.
        higher: in how many of them the first method is above the second.
        lower: in how many it is below.
    """

    mean: float
    std: float
    interval: tuple[float, float]
    p: float
    seeds: int
    higher: int
    lower: int

    @property
    def effect(self) -> float:
        """Cohen's d of the differences: mean over standard deviation."""
        if self.std:
            return self.mean / self.std
        return float("inf") * (1 if self.mean > 0 else -1) if self.mean else 0.0

    @property
    def std_error(self) -> float:
        """Standard error of the mean difference."""
        return self.std / self.seeds**0.5

    def __neg__(self) -> "Paired":
        """The second method minus the first."""
        low, high = self.interval
        return replace(
            self, mean=0.0 - self.mean, interval=(0.0 - high, 0.0 - low), higher=self.lower, lower=self.higher
        )

    def text(self, digits: int = 2) -> str:
        """Mean, interval and p-value for a table."""
        mean, low, high = (f"{x:+.{digits}f}" for x in (self.mean, *self.interval))
        return f"{mean} [{low}, {high}], p {self.p:.2g}"


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Our method minus theirs; both lists in the order of the seeds."""
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, std = statistics.mean(gains), statistics.stdev(gains)
    interval, p = (mean, mean), float(mean == 0.0)
    if std:
        test = stats.ttest_rel(ours, theirs)
        low, high = test.confidence_interval(0.95)
        interval, p = (float(low), float(high)), float(test.pvalue)
    return Paired(mean, std, interval, p, len(gains), sum(g > 0 for g in gains), sum(g < 0 for g in gains))


def against(ours: Sequence[float], others: Mapping[str, Sequence[float]]) -> dict[str, Paired]:
    """Our method minus each of the others, which form one family of tests."""
    return corrected({name: paired(ours, theirs) for name, theirs in others.items()})


def corrected(family: Mapping[str, Paired]) -> dict[str, Paired]:
    """The same comparisons with p-values after Holm's correction over all of them."""
    p = holm({name: each.p for name, each in family.items()})
    return {name: replace(each, p=p[name]) for name, each in family.items()}


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of p-values."""
    least, result = 0.0, {}
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[name]))
        result[name] = least
    return result
