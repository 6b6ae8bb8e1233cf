"""Whether inputs that lie close together get temperatures that do."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._checks import check_count
from dro_temp.evaluation._batches import with_progress
from dro_temp.evaluation._inputs import (
    check_confidence,
    check_features,
    check_labels,
    check_tau,
    in_blocks,
    unit,
)
from dro_temp.evaluation.features.nearest import BANK, nearest
from dro_temp.functional.ranks import spearman


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
    check_confidence(confidence)
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
