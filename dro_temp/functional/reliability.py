"""Confidence against accuracy, by bins of confidence."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp._typing import PerRow, RowMask


@dataclass(frozen=True)
class Reliability:
    """Sums over the rows of each of several bins of [0, 1], all of one width; what a reliability diagram draws.

    Args:
        count: rows in each bin, or their weight.
        confidence: sum of their confidences.
        correct: how many of them were right.
    """

    count: tuple[float, ...]
    confidence: tuple[float, ...]
    correct: tuple[float, ...]

    @property
    def error(self) -> float:
        """Expected calibration error of these rows, in [0, 1]; NaN if there are none."""
        total = sum(self.count)
        apart = sum(abs(p - right) for p, right in zip(self.confidence, self.correct, strict=True))
        return apart / total if total else float("nan")


def reliability_sums(confidence: PerRow, correct: RowMask, weight: PerRow, bins: int) -> Tensor:
    """Weight, confidence and hits of the rows in each bin, float64 [3 bins].

    A confidence on an edge belongs to the bin above it; 1 belongs to the last. An edge is k / bins in the precision of
    the confidences: 0.7 in float32, which is less than 0.7, lies on it too.

    Example:
        >>> right = torch.tensor([True, False, True])
        >>> reliability_sums(torch.tensor([0.25, 0.75, 1.0]), right, torch.ones(3), 2).tolist()
        [[1.0, 2.0], [0.25, 1.75], [1.0, 1.0]]
    """
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    place = torch.bucketize(confidence.double(), edges.to(confidence.dtype).double(), right=True)
    weight = weight.double()
    columns = torch.stack([weight, weight * confidence.double(), weight * correct.double()])
    return columns.new_zeros(3, bins).index_add_(1, place, columns)
