"""One-way analysis of variance with random effects, groups of unequal size."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Sums of each concept, in an order that is theirs alone."""

    place: Tensor  # [N] the concept of each row, rows in the order of their temperatures
    count: Tensor  # [a]
    sums: Tensor  # [a 6] what weighted sums over concepts need

    @classmethod
    def of(cls, values: Tensor, place: Tensor) -> "Groups":
        count = place.bincount().double()
        total = torch.zeros_like(count).index_add_(0, place, values)
        deviation = (values - (total / count)[place]).square()
        within = torch.zeros_like(count).index_add_(0, place, deviation)
        # Numbered by size, then mean, then spread: concepts that tie in all three are one to the statistics.
        order = torch.arange(len(count))
        for key in (within, total, count):
            order = order[key[order].argsort(stable=True)]
        count, total, within = count[order], total[order], within[order]
        sums = torch.stack(
            [torch.ones_like(count), count, count.square(), total, total.square() / count, within], 1
        )
        return cls(order.argsort()[place], count, sums)

    def anova(self, times: Tensor) -> tuple[float, float, float]:
        """Intraclass correlation, variance within and variance between, each concept counted `times`, [a]."""
        a, n, squares, total, means, deviations = (times @ self.sums).tolist()
        if a < 2:
            return math.nan, math.nan, math.nan
        within = deviations / (n - a)
        among = max(means - total**2 / n, 0.0) / (a - 1)
        typical = (n - squares / n) / (a - 1)
        below = among + (typical - 1) * within
        return (among - within) / below if below > 0 else math.nan, within, (among - within) / typical

    def p_value(self, values: Tensor, resamples: int, chance: torch.Generator) -> float:
        """Share of shuffles that set concepts apart as far, this one included."""
        # Shuffles leave the sum of squares as it is, so that the ICC rises with that of the means alone.
        observed = float(self.sums[:, 4].sum())
        least = observed - 1e-10 * float(values.square().sum())  # a shuffle that ties may be rounded
        # Not `place`: of rows with one temperature, the order in which they came decides whose is whose.
        slots = torch.arange(len(self.count)).repeat_interleave(self.count.long())
        as_far = 0
        for _ in range(resamples):
            shuffled = values[torch.randperm(len(values), generator=chance)]
            total = torch.zeros_like(self.count).index_add_(0, slots, shuffled)
            as_far += float((total.square() / self.count).sum()) >= least
        return (1 + as_far) / (1 + resamples)

    def differences(self, values: Tensor) -> tuple[float, float]:
        """Mean absolute difference of two rows of one concept, and of two of different concepts; values ascend."""
        n = len(values)
        everything = float((2 * torch.arange(n) - n + 1).double() @ values)  # of sorted numbers, over pairs
        by_concept = self.place.argsort(stable=True)
        of = self.place[by_concept]
        rank = torch.arange(n) - (self.count.cumsum(0) - self.count).long()[of]
        mean = self.sums[:, 3] / self.count
        within = float((2 * rank - self.count[of] + 1) @ (values[by_concept] - mean[of]))
        pairs = float((self.count * (self.count - 1)).sum()) / 2
        return max(within, 0.0) / pairs, max(everything - within, 0.0) / (n * (n - 1) / 2 - pairs)
