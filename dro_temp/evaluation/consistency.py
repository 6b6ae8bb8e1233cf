"""Whether inputs of one concept get one temperature."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._checks import check_count
from dro_temp.evaluation._anova import Groups
from dro_temp.evaluation._features import check_labels
from dro_temp.evaluation._statistics import check_confidence, check_tau
from dro_temp.functional.resampling import generator, interval, times_drawn


@dataclass(frozen=True)
class SemanticConsistency:
    """How far the temperatures of one concept agree, and those of different concepts do not.

    Args:
        icc: intraclass correlation: 1 where a concept has one temperature, 0 where concepts say nothing, NaN where
            all temperatures are one.
        low: lower end of its bootstrap interval over concepts.
        high: upper end.
        p_value: share of shuffled labels that give an intraclass correlation as high, by permutation.
        within_std: standard deviation of temperatures within a concept.
        between_std: standard deviation of the concepts' own temperatures, without what their rows scatter; 0 where
            its estimate is negative.
        within_difference: mean absolute difference of the temperatures of two rows of one concept.
        between_difference: the same of two rows of different concepts.
        concepts: number of concepts that occur more than once: the others are left out.
        rows: number of their rows.
        confidence: level of the interval.
    """

    icc: float
    low: float
    high: float
    p_value: float
    within_std: float
    between_std: float
    within_difference: float
    between_difference: float
    concepts: int
    rows: int
    confidence: float

    @property
    def ratio(self) -> float:
        """Difference within a concept over difference between two: 0 where concepts decide, 1 where they do not."""
        return self.within_difference / self.between_difference if self.between_difference > 0 else math.nan

    def __str__(self) -> str:
        """Three lines."""
        if math.isnan(self.icc):
            return f"undefined: one temperature for all of {self.concepts:,} concepts of {self.rows:,} rows"
        return (
            f"intraclass correlation {self.icc:.2f} [{self.low:.2f}, {self.high:.2f}], p = {self.p_value:.2g} "
            f"({100 * self.confidence:g} % bootstrap over {self.concepts:,} concepts of {self.rows:,} rows)\n"
            f"standard deviation {self.within_std:.2g} within a concept, {self.between_std:.2g} between concepts\n"
            f"mean difference {self.within_difference:.2g} of two rows of one concept, {self.between_difference:.2g} "
            f"of two concepts: {self.ratio:.2f} times"
        )


def semantic_consistency(
    tau: Float[Tensor, "n"],
    concept: Int[Tensor, "n"],
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> SemanticConsistency:
    r"""Do inputs of one concept get one temperature? The intraclass correlation ICC(1), concepts of unequal size.

    With a concepts of $n_c$ rows each, $N = \sum_c n_c$, means $\bar\tau_c$ and $\bar\tau$:

    $$\mathrm{ICC} = \frac{B - W}{B + (n_0 - 1) W}, \qquad
    B = \frac{\sum_c n_c (\bar\tau_c - \bar\tau)^2}{a - 1}, \qquad
    W = \frac{\sum_c \sum_{i \in c} (\tau_i - \bar\tau_c)^2}{N - a}, \qquad
    n_0 = \frac{N - \sum_c n_c^2 / N}{a - 1}$$

    the estimate of $\sigma_b^2 / (\sigma_b^2 + \sigma_w^2)$ by one-way analysis of variance with random effects,
    $\sigma_w^2 = W$ and $\sigma_b^2 = (B - W) / n_0$. It is negative, down to $-1 / (n_0 - 1)$, where the means of
    concepts differ less than chance would make them: around 0 that is chance, far below it rows of one concept
    repel each other. Affine maps of the temperatures leave it as it is; neither labels nor the order of rows matter.

    Concepts that occur once are left out: they show nothing of what differs within a concept. The interval is that
    of a percentile bootstrap over concepts, whose rows are no independent witnesses. It is too narrow where concepts
    are few: of simulated normal temperatures with ICC 0.5, concepts of one to six rows, intervals of 95 % held the
    truth 87, 90 and 92 times in a hundred with 30, 100 and 300 concepts. The p-value is
    $(1 + \#\{\text{shuffles with an ICC as high}\}) / (1 + \text{resamples})$.

    Args:
        tau: one temperature per row.
        concept: number of each row's concept, for example `GlyphCaptions.name_index`.
        resamples: number of bootstrap samples, and of shuffles.
        seed: of both.
        confidence: level of the interval, in (0, 1).

    Raises:
        ValueError: temperatures that are not finite, not one concept each, fewer than two concepts that occur more
            than once, or a confidence outside (0, 1).
        TypeError: temperatures or concepts of a wrong dtype.

    Example:
        >>> concept = torch.arange(60) // 3
        >>> tau = 0.1 + 0.01 * torch.sin(concept) + 1e-4 * torch.cos(torch.arange(60.0))
        >>> found = semantic_consistency(tau, concept)
        >>> found.icc > 0.99, found.p_value < 0.002, found.concepts
        (True, True, 20)

    Source: Fisher 1925, chapter 7; Shrout and Fleiss 1979 (the name ICC(1)); Donner 1986 (unequal sizes).
    """
    values = check_tau(tau)
    place, repeated = _repeated(check_labels("concept", concept, len(values)).cpu())
    check_count("resamples", resamples)
    check_confidence(confidence)
    # By size of the temperature: sums, and what is drawn, must not depend on the order in which rows came.
    values, order = values[repeated].sort()
    place, concepts, chance = place[order], 1 + int(place.max()), generator(seed)
    if values[0] == values[-1]:
        nan = math.nan
        return SemanticConsistency(
            nan, nan, nan, nan, 0.0, 0.0, 0.0, 0.0, concepts, len(values), confidence
        )  # fmt: skip
    values = values - values.mean()
    groups = Groups.of(values, place)
    icc, within, between = groups.anova(torch.ones(concepts, dtype=torch.float64))
    drawn = [groups.anova(times_drawn(concepts, chance))[0] for _ in range(resamples)]
    low, high = interval(torch.tensor(drawn, dtype=torch.float64), confidence)
    return SemanticConsistency(
        icc, low, high, groups.p_value(values, resamples, chance), math.sqrt(within),
        math.sqrt(max(between, 0.0)), *groups.differences(values), concepts, len(values), confidence,
    )  # fmt: skip


def _repeated(concept: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the concept of each row that is used, without gaps, and which rows are used."""
    _, place, count = torch.unique(concept, return_inverse=True, return_counts=True)
    repeated = count[place] > 1
    if int((count > 1).sum()) < 2:
        raise ValueError(
            f"expected at least two concepts that occur more than once, received {int((count > 1).sum())} among "
            f"{len(count)} concepts of {len(concept)} rows. Number concepts more coarsely, or pass more rows."
        )
    return torch.unique(place[repeated], return_inverse=True)[1], repeated
