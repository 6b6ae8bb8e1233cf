"""Whether inputs that lie close together get temperatures that do."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dro_temp._checks import check_count
from dro_temp.evaluation._features import check_features, check_labels, unit
from dro_temp.evaluation._progress import shown
from dro_temp.evaluation._statistics import check_confidence, check_tau
from dro_temp.evaluation.neighbours import _QUERIES, _nearest
from dro_temp.functional.ranks import spearman


@dataclass(frozen=True)
class NeighbourConsistency:
    """How far a row's temperature goes with those of its neighbours.

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
        """One line."""
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
    r"""Does a row's temperature go with those of its nearest neighbours, which are of other concepts?

    $$r = \mathrm{Spearman}\Bigl(\tau_i,\ \frac{1}{k} \sum_{j \in \mathrm{top}_k(i)} \tau_j\Bigr), \qquad
    \mathrm{top}_k(i): \text{ the } k \text{ highest } \cos(x_i, x_j) \text{ with } y_j \ne y_i$$

    A network that is continuous gives neighbours in *its own* input space alike temperatures, whatever it learned:
    with the embeddings that it reads, r tells how smooth it is on their scale. With features that it never sees
    (pixels, the other tower, another model) it tells more.

    The interval is that of a percentile bootstrap over concepts. Neighbours stay what they are, and rows share them,
    so that it is rather too narrow. Which of several rows that tie for the k-th place counts is not specified.

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
        ImportError: `progress` without rich.

    Example:
        >>> angle = torch.linspace(0, 1.5, 50)
        >>> circle = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> neighbour_consistency(0.1 + 0.01 * angle, circle, k=3).correlation > 0.99
        True
    """
    values = check_tau(tau)
    check_features(features=features)
    n = len(values)
    concept = torch.arange(n) if concept is None else check_labels("concept", concept, n).cpu()
    if len(features) != n:
        raise ValueError(
            f"expected features [{n} d], one row per temperature, received {list(features.shape)}. Index "
            "temperatures and features alike."
        )
    _, group, size = torch.unique(concept, return_inverse=True, return_counts=True)
    k = _check_k(k, n, int(size.max()))
    check_count("resamples", resamples)
    check_confidence(confidence)
    near = _mean_of_neighbours(values, features, group, k, int(size.max()), progress)
    found = spearman(values, near, group, resamples, seed=seed, confidence=confidence)
    return NeighbourConsistency(*found, k, len(size), n, confidence)


def _check_k(k: int, rows: int, largest: int) -> int:
    k = check_count("k", k)
    if k > rows - largest:
        raise ValueError(
            f"expected k of at most {rows - largest}, the number of rows outside the largest concept, received k={k}. "
            "Pass a smaller k, or finer concepts."
        )
    return k


def _mean_of_neighbours(
    values: Tensor, features: Tensor, group: Tensor, k: int, largest: int, progress: bool
) -> Tensor:
    """Mean temperature of the k nearest rows of other concepts, [n]."""
    with torch.no_grad():
        bank = unit(features)
        parts = list(zip(torch.split(bank, _QUERIES), torch.split(group, _QUERIES), strict=True))
        means = []
        for queries, own in shown(parts, "neighbours" if progress else None):
            # So many that k of other concepts are among them: a row's own concept takes `largest` places at most.
            who = _nearest(queries, bank, k + largest)[1].cpu()
            other = group[who] != own[:, None]
            chosen = other & (other.cumsum(dim=1) <= k)
            # Sorted, so that equal temperatures have equal sums: rounding must not order ties.
            means.append((values[who] * chosen).sort(dim=1).values.sum(dim=1) / k)
    return torch.cat(means)
