"""Do inputs of one concept get one temperature? Variance within concepts, neighbours, near-duplicates."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._checks import check_count, check_inside, check_within
from dro_temp.datasets.groups import joined_roots, numbered_roots
from dro_temp.evaluation._batches import with_progress
from dro_temp.evaluation._inputs import ROUNDING, check_features, check_labels, check_tau, in_blocks, unit
from dro_temp.evaluation.features import BANK, nearest
from dro_temp.functional.ranks import spearman
from dro_temp.functional.resampling import generator, interval, times_drawn


@dataclass(frozen=True)
class SemanticConsistency:
    """How far temperatures agree within a concept, and differ between concepts.

    Args:
        icc: intraclass correlation: 1 if a concept has one temperature, 0 if concepts do not matter, NaN if all
            temperatures are equal.
        low: lower end of its bootstrap interval over concepts.
        high: upper end.
        p_value: share of permuted labels that give an intraclass correlation as high.
        within_std: standard deviation of temperatures within a concept.
        between_std: standard deviation of the concepts' own temperatures, net of the scatter of their rows; 0 where
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
        """Difference within a concept over that between two: 0 if the concept decides, 1 if it does not matter."""
        return self.within_difference / self.between_difference if self.between_difference > 0 else math.nan

    def __str__(self) -> str:
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
    r"""Intraclass correlation ICC(1) of temperatures over concepts: do inputs of one concept get one temperature?

    With a concepts of $n_c$ rows each, $N = \sum_c n_c$, means $\bar\tau_c$ and $\bar\tau$:

    $$\mathrm{ICC} = \frac{B - W}{B + (n_0 - 1) W}, \qquad
    B = \frac{\sum_c n_c (\bar\tau_c - \bar\tau)^2}{a - 1}, \qquad
    W = \frac{\sum_c \sum_{i \in c} (\tau_i - \bar\tau_c)^2}{N - a}, \qquad
    n_0 = \frac{N - \sum_c n_c^2 / N}{a - 1}$$

    the estimate of $\sigma_b^2 / (\sigma_b^2 + \sigma_w^2)$ by one-way analysis of variance with random effects,
    $\sigma_w^2 = W$ and $\sigma_b^2 = (B - W) / n_0$. It is negative, down to $-1 / (n_0 - 1)$, where the means of
    concepts differ less than by chance: around 0 that is noise, far below it rows of one concept repel each other. It
    is invariant to affine maps of the temperatures, to the labels and to the order of rows.

    Concepts that occur once are left out, having no variance within. The interval is that of a percentile bootstrap
    over concepts, since rows of one concept are not independent. It is too narrow where concepts are few: of simulated
    normal temperatures with ICC 0.5, concepts of one to six rows, intervals of 95 % covered the true value 87, 90 and
    92 times in a hundred with 30, 100 and 300 concepts. The p-value is
    $(1 + \#\{\text{permutations with an ICC as high}\}) / (1 + \text{resamples})$.

    Args:
        tau: one temperature per row.
        concept: number of each row's concept, for example `GlyphCaptions.name_index`.
        resamples: number of bootstrap samples, and of permutations.
        seed: of both.
        confidence: level of the interval, in (0, 1).

    Raises:
        ValueError: temperatures that are not finite, not one concept each, fewer than two concepts that occur more
            than once, or a confidence outside (0, 1).
        TypeError: temperatures or concepts of a wrong dtype.

    Example:
        >>> concept = torch.arange(60) // 3
        >>> tau = 0.1 + 0.01 * torch.sin(concept) + 1e-4 * torch.cos(torch.arange(60.0))
        >>> report = semantic_consistency(tau, concept)
        >>> report.icc > 0.99, report.p_value < 0.002, report.concepts
        (True, True, 20)

    Source: Fisher 1925, chapter 7; Shrout and Fleiss 1979 (the name ICC(1)); Donner 1986 (unequal sizes).
    """
    values = check_tau(tau)
    concept = check_labels("concept", concept, len(values)).cpu()
    check_count("resamples", resamples)
    check_inside("confidence", confidence, 0.0, 1.0)
    _, place, count = torch.unique(concept, return_inverse=True, return_counts=True)
    repeated, concepts = count[place] > 1, int((count > 1).sum())
    if concepts < 2:
        raise ValueError(
            f"expected at least two concepts that occur more than once, received {concepts} among "
            f"{len(count)} concepts of {len(concept)} rows. Number concepts more coarsely, or pass more rows."
        )
    _, place = torch.unique(place[repeated], return_inverse=True)
    # By size of the temperature: neither sums nor what is drawn may depend on the order of the rows.
    values, order = values[repeated].sort()
    values = values - values[0]  # exactly zero where all are equal
    rng, groups = generator(seed), _Groups(values - values.mean(), place[order])
    icc, within, between = groups.anova(torch.ones(concepts, dtype=torch.float64))
    drawn = [groups.anova(times_drawn(concepts, rng))[0] for _ in range(resamples)]
    low, high = interval(torch.tensor(drawn, dtype=torch.float64), confidence)
    p_value = math.nan if math.isnan(icc) else groups.p_value(resamples, rng)
    deviations = math.sqrt(within), math.sqrt(max(between, 0.0))
    figures = icc, low, high, p_value, *deviations, *groups.differences()
    return SemanticConsistency(*figures, concepts, len(values), confidence)


class _Groups:
    """Centred temperatures in ascending order [N], grouped by concept."""

    def __init__(self, values: Tensor, place: Tensor) -> None:
        parts = torch.split(values[place.argsort(stable=True)], place.bincount().tolist())
        figures = [(len(x), float(x.sum()), float((x - x.mean()).square().sum())) for x in parts]
        # By size, mean and spread: to the statistics, concepts that tie in all three are the same.
        order = sorted(range(len(parts)), key=figures.__getitem__)
        self.values, self.parts = values, [parts[i] for i in order]
        n, total, within = torch.tensor([figures[i] for i in order], dtype=torch.float64).unbind(1)
        self.count = n
        # [a 6]: what the statistics of resampled concepts need.
        self.sums = torch.stack([torch.ones_like(n), n, n.square(), total, total.square() / n, within], 1)

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

    def p_value(self, resamples: int, rng: torch.Generator) -> float:
        """Share of permutations, the identity included, whose concepts differ as much."""
        # Permutations leave the sum of squares unchanged, so that the ICC rises with that of the means alone.
        observed = float(self.sums[:, 4].sum())
        least = observed - 1e-10 * float(self.values.square().sum())  # a permutation that ties may be rounded
        slots = torch.arange(len(self.count)).repeat_interleave(self.count.long())
        as_high = 0
        for _ in range(resamples):
            permuted = self.values[torch.randperm(len(self.values), generator=rng)]
            total = torch.zeros_like(self.count).index_add_(0, slots, permuted)
            as_high += float((total.square() / self.count).sum()) >= least
        return (1 + as_high) / (1 + resamples)

    def differences(self) -> tuple[float, float]:
        """Mean absolute difference of two rows of one concept, and of two of different concepts."""
        n, pairs = len(self.values), float((self.count * (self.count - 1)).sum()) / 2

        def summed(ascending: Tensor) -> float:  # over all pairs: linear in the numbers
            k = len(ascending)
            return float((2 * torch.arange(k) - k + 1).double() @ ascending)

        within = math.fsum(map(summed, self.parts))
        between = max(summed(self.values) - within, 0.0)
        return max(within, 0.0) / pairs, between / (n * (n - 1) / 2 - pairs)


@dataclass(frozen=True)
class NeighbourConsistency:
    """Rank correlation of a row's temperature with those of its neighbours.

    Args:
        correlation: Spearman's rank correlation of a row's temperature and the mean of its neighbours', in [-1, 1];
            NaN where one side is all one value.
        low: lower end of its bootstrap interval over concepts.
        high: upper end.
        k: number of neighbours.
        concepts: number of concepts.
        rows: number of rows.
        confidence: level of the interval.
    """

    correlation: float
    low: float
    high: float
    k: int
    concepts: int
    rows: int
    confidence: float

    def __str__(self) -> str:
        if math.isnan(self.correlation):
            return f"undefined: one temperature for all of {self.rows:,} rows, or for all their neighbours"
        return (
            f"rank correlation {self.correlation:.2f} [{self.low:.2f}, {self.high:.2f}] with the mean of {self.k} "
            f"nearest neighbours ({100 * self.confidence:g} % bootstrap over {self.concepts:,} concepts of "
            f"{self.rows:,} rows)"
        )


def neighbour_consistency(
    tau: Float[Tensor, "n"],
    features: Float[Tensor, "n d"],
    *,
    concept: Int[Tensor, "n"] | None = None,
    k: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    progress: bool = False,
) -> NeighbourConsistency:
    r"""Rank correlation of temperatures with those of the nearest neighbours from other concepts.

    $$r = \mathrm{Spearman}\Bigl(\tau_i,\ \frac{1}{k} \sum_{j \in \mathrm{top}_k(i)} \tau_j\Bigr), \qquad
    \mathrm{top}_k(i): \text{ the } k \text{ highest } \cos(x_i, x_j) \text{ with } y_j \ne y_i$$

    A continuous network gives neighbours in *its own* input space similar temperatures, whatever it learned: with the
    embeddings that it reads, r measures its smoothness on their scale. Features that it never sees (pixels, the other
    tower, another model) are more informative.

    The interval is that of a percentile bootstrap over concepts. Neighbours are not recomputed, and rows share them,
    so that it is too narrow. Which of several rows that tie for the k-th place counts is not specified.

    Args:
        tau: one temperature per row.
        features: one vector per row, of any length.
        concept: number of each row's concept; without it each row is one of its own.
        k: number of neighbours, at most the number of rows of other concepts.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.
        confidence: level of the interval, in (0, 1).
        progress: show a progress bar.

    Raises:
        ValueError: temperatures or features that are not finite, other lengths, a k above the number of rows of
            other concepts, or a confidence outside (0, 1).
        TypeError: temperatures, features or concepts of a wrong dtype.

    Example:
        >>> angle = torch.linspace(0, 1.5, 50)
        >>> circle = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> neighbour_consistency(0.1 + 0.01 * angle, circle, k=3).correlation > 0.99
        True
    """
    values, n = check_tau(tau), len(tau)
    check_features(features=features)
    concept = torch.arange(n) if concept is None else check_labels("concept", concept, n).cpu()
    if len(features) != n:
        raise ValueError(
            f"expected features [{n} d], received {list(features.shape)}. Index temperatures and features alike."
        )
    _, group, size = torch.unique(concept, return_inverse=True, return_counts=True)
    k, largest = check_count("k", k), int(size.max())
    if k > n - largest:
        raise ValueError(
            f"expected k of at most {n - largest}, the number of rows outside the largest concept, received k={k}. "
            "Pass a smaller k, or finer concepts."
        )
    check_count("resamples", resamples)
    check_inside("confidence", confidence, 0.0, 1.0)
    means = []
    with torch.no_grad():
        bank = unit(features)
        blocks = in_blocks(BANK, bank, group)
        for queries, own in with_progress(blocks, "neighbours" if progress else None):
            # So many that k of other concepts are among them: a row's own concept takes `largest` places at most.
            rows = nearest(queries, bank, k + largest)[1].cpu()
            other = group[rows] != own[:, None]
            chosen = other & (other.cumsum(dim=1) <= k)
            # Sorted, so that equal temperatures have equal sums: rounding must not order ties.
            means.append((values[rows] * chosen).sort(dim=1).values.sum(dim=1) / k)
    figures = spearman(values, torch.cat(means), group, resamples, seed=seed, confidence=confidence)
    return NeighbourConsistency(*figures, k, len(size), n, confidence)


def same_concept(concept: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    r"""Number of other items with the same concept, $\#\{j \ne i : y_j = y_i\}$.

    Args:
        concept: number of each item's concept, for example `GlyphCaptions.name_index`.

    Raises:
        ValueError: no items, not one number per item, or negative numbers.
        TypeError: numbers of another than an integer dtype.

    Example:
        >>> same_concept(torch.tensor([7, 3, 7, 7]))
        tensor([2, 0, 2, 2])
    """
    concept = check_labels("concept", concept)
    _, place, count = torch.unique(concept, return_inverse=True, return_counts=True)
    others: Tensor = count[place] - 1
    return others


def near_duplicates(
    features: Float[Tensor, "n d"], *, threshold: float = 0.95, progress: bool = False
) -> Int[Tensor, "n"]:
    r"""Number of other items whose cosine similarity reaches a threshold, $\#\{j \ne i : \cos(x_i, x_j) \ge t\}$.

    Computed tile by tile: time is quadratic in n, memory linear.

    Args:
        features: one vector per item, of any length.
        threshold: minimum similarity, in [0, 1], up to rounding ($2^{-20}$): 1 counts exact duplicates.
        progress: show a progress bar.

    Raises:
        ValueError: features that are not a finite matrix, or a threshold outside [0, 1].
        TypeError: features that are not floating point.

    Example:
        >>> near_duplicates(torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]))
        tensor([1, 1, 0])
    """
    check_features(features=features)
    count = torch.zeros(len(features), dtype=torch.long, device=features.device)
    for first, _, near in _near_pairs(features, threshold, progress):
        count[first : first + len(near)] += near.sum(dim=1)
    return count


def near_duplicate_groups(
    features: Float[Tensor, "n d"], *, threshold: float = 0.95, progress: bool = False
) -> Int[Tensor, "n"]:
    r"""Number of each item's group of near-duplicates, which a chain of `near_duplicates` joins; -1 for an item alone.

    As the `group` of a host of pairs they are false negatives: no negatives of each other. A chain may join items
    whose own similarity is lower. Computed tile by tile, as `near_duplicates`.

    Args:
        features: one vector per item, of any length, of an encoder of your own.
        threshold: minimum similarity, in [0, 1], up to rounding ($2^{-20}$): 1 joins exact duplicates.
        progress: show a progress bar.

    Returns:
        Numbers from 0 on.

    Raises:
        ValueError: features that are not a finite matrix, or a threshold outside [0, 1].
        TypeError: features that are not floating point.

    Example:
        >>> near_duplicate_groups(torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]))
        tensor([ 0,  0, -1])
    """
    check_features(features=features)
    root = torch.arange(len(features), device=features.device)
    for first_row, first_column, near in _near_pairs(features, threshold, progress):
        if first_column + near.shape[1] > first_row:  # the others were met as rows
            row, column = near.nonzero().unbind(1)
            root = joined_roots(root, row + first_row, column + first_column)
    return numbered_roots(root)


@torch.no_grad()
def _near_pairs(features: Tensor, threshold: float, progress: bool) -> Iterator[tuple[int, int, Tensor]]:
    """First row and first column of each tile of items by items, and True where two others are near."""
    check_within("threshold", threshold, 0.0, 1.0)
    bank, first = unit(features), 0
    for (queries,) in with_progress(in_blocks(BANK, bank), "near-duplicates" if progress else None):
        for start in range(0, len(bank), BANK):
            near = queries @ bank[start : start + BANK].T >= threshold - ROUNDING
            near.diagonal(first - start).fill_(False)  # an item is no other
            yield first, start, near
        first += len(queries)
