"""Which items lie close together: votes of the nearest, temperatures of neighbours, near-duplicates."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._checks import check_count, check_inside, check_positive, check_within
from dro_temp.evaluation._batches import with_progress
from dro_temp.evaluation._inputs import (
    ROUNDING,
    check_features,
    check_ks,
    check_labels,
    check_tau,
    expected_hits,
    in_blocks,
    unit,
)
from dro_temp.functional.ranks import spearman

_BANK = 16_384  # items in a tile of similarities


def knn_accuracy(
    train: Float[Tensor, "m d"],
    train_label: Int[Tensor, "m"],
    test: Float[Tensor, "n d"],
    test_label: Int[Tensor, "n"],
    *,
    k: int = 200,
    tau: float = 0.07,
    progress: bool = False,
) -> float:
    r"""Accuracy, in percent, of the weighted vote of the k nearest training items.

    $$\mathrm{votes}_{ic} = \sum_{j \in \mathrm{top}_k(s_{i\cdot}),\ y_j = c} e^{s_{ij} / \tau}, \qquad
    s_{ij} = \cos(x_i, x_j)$$

    A tie between classes counts for each of them in part. Which of several training items that tie for the k-th place
    vote is not specified. Similarities are computed tile by tile, never all at once.

    Args:
        train: features that vote, any length.
        train_label: class number of each.
        test: features to classify.
        test_label: class number of each.
        k: number of neighbours, at most the number of training items.
        tau: temperature of the votes, > 0; a large one weighs all neighbours equally.
        progress: show a progress bar.

    Raises:
        ValueError: features that are no finite matrices of one width, labels that do not fit, a k above the number
            of training items, or a temperature that is not positive.
        TypeError: features or labels of a wrong dtype.

    Example:
        >>> knn_accuracy(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([0, 0]), k=1)
        50.0

    Source: Wu et al., arXiv 1805.01978 (InstDisc): k = 200, tau = 0.07.
    """
    check_features(train=train, test=test)
    train_label = check_labels("train_label", train_label, len(train)).to(train.device)
    test_label = check_labels("test_label", test_label, len(test)).to(train.device)
    (k,) = check_ks((k,), len(train), "training items")
    check_positive("tau", tau)
    classes = 1 + int(torch.stack([train_label.max(), test_label.max()]).max())
    hits = 0.0
    with torch.no_grad():
        bank = unit(train)
        parts = in_blocks(_BANK, unit(test).to(bank), test_label)
        for queries, label in with_progress(parts, "neighbours" if progress else None):
            similarity, neighbour = nearest(queries, bank, k)
            # Relative to the nearest: nothing overflows.
            weight = ((similarity - similarity[:, :1]) / tau).exp()
            votes = weight.new_zeros(len(queries), classes).scatter_add_(1, train_label[neighbour], weight)
            hits += float(expected_hits(votes, label, (1,)).sum())
    return 100.0 * hits / len(test)


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
        blocks = in_blocks(_BANK, bank, group)
        for queries, own in with_progress(blocks, "neighbours" if progress else None):
            # So many that k of other concepts are among them: a row's own concept takes `largest` places at most.
            rows = nearest(queries, bank, k + largest)[1].cpu()
            other = group[rows] != own[:, None]
            chosen = other & (other.cumsum(dim=1) <= k)
            # Sorted, so that equal temperatures have equal sums: rounding must not order ties.
            means.append((values[rows] * chosen).sort(dim=1).values.sum(dim=1) / k)
    figures = spearman(values, torch.cat(means), group, resamples, seed=seed, confidence=confidence)
    return NeighbourConsistency(*figures, k, len(size), n, confidence)


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
        ValueError: features that are no finite matrix, or a threshold outside [0, 1].
        TypeError: features that are not floating point.

    Example:
        >>> near_duplicates(torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]))
        tensor([1, 1, 0])
    """
    check_features(features=features)
    check_within("threshold", threshold, 0.0, 1.0)
    with torch.no_grad():
        bank = unit(features)
        count = -(bank.square().sum(1) >= threshold - ROUNDING).long()  # an item is no other
        blocks = in_blocks(_BANK, bank, count)
        for queries, others in with_progress(blocks, "near-duplicates" if progress else None):
            for tile in torch.split(bank, _BANK):
                others += (queries @ tile.T >= threshold - ROUNDING).sum(dim=1)
    return count


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest dot products [n k], highest first, and the rows of the bank that they belong to."""
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), _BANK):
        tile = queries @ bank[start : start + _BANK].T
        number = torch.arange(start, start + tile.shape[1], device=tile.device).expand_as(tile)
        both = torch.cat([best, tile], dim=1)
        best, place = both.topk(min(k, both.shape[1]), dim=1)
        rows = torch.cat([rows, number], dim=1).gather(1, place)
    return best, rows
