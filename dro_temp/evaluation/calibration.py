"""Whether a probability of 80 % is right four times in five."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dro_temp._checks import check_count


def expected_calibration_error(
    confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"], *, bins: int = 15
) -> float:
    r"""Mean distance between confidence and accuracy, over bins of equal width.

    $$\mathrm{ECE} = \sum_b \frac{|B_b|}{n}\, \bigl|\mathrm{acc}(B_b) - \mathrm{conf}(B_b)\bigr|$$

    Args:
        confidence: probability of the most probable outcome of each row, in [0, 1].
        correct: True where that outcome is the target.
        bins: number of bins of [0, 1]; a confidence on an edge belongs to the bin above it.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: no rows, shapes that differ, or a confidence outside [0, 1].
        TypeError: `correct` is not boolean, or `bins` no int.

    Example:
        >>> always_sure = torch.ones(4)
        >>> expected_calibration_error(always_sure, torch.tensor([True, True, True, False]))
        0.25

    Source: Naeini et al. 2015; Guo et al., arXiv 1706.04599.
    """
    if confidence.dim() != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        raise ValueError(
            "expected confidence [n] and correct [n] with n > 0, received "
            f"{list(confidence.shape)} and {list(correct.shape)}. Give both one number per row."
        )
    if correct.dtype != torch.bool:
        raise TypeError(f"expected correct as booleans, received {correct.dtype}. Pass predicted == target.")
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError(
            f"expected confidences in [0, 1], received some from {float(confidence.min()):.4g} to "
            f"{float(confidence.max()):.4g}. Pass logits.softmax(1).amax(1)."
        )
    sums = CalibrationSums(bins)
    sums.add(confidence, correct, torch.ones_like(confidence))
    return sums.error


class CalibrationSums:
    """Sums over the bins, so that rows can come a block at a time."""

    def __init__(self, bins: int) -> None:
        self.bins = check_count("bins", bins)
        self._sums = torch.zeros(3, self.bins, dtype=torch.float64)

    def add(self, confidence: Tensor, correct: Tensor, weight: Tensor) -> None:
        """Take in some rows, [n] each."""
        confidence, correct, weight = (x.detach().cpu().double() for x in (confidence, correct, weight))
        place = (confidence * self.bins).long().clamp(max=self.bins - 1)
        for into, values in zip(self._sums, (weight, weight * confidence, weight * correct), strict=True):
            into.index_add_(0, place, values)

    @property
    def error(self) -> float:
        """Expected calibration error of all rows so far; NaN if there were none."""
        count, confidence, correct = self._sums
        return float((confidence - correct).abs().sum() / count.sum())
