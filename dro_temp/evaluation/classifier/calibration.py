"""Whether a probability of 80 % is right four times in five."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dro_temp._checks import check_count, check_floats, check_tensor
from dro_temp.functional.reliability import Reliability, reliability_sums


def expected_calibration_error(
    confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"], *, bins: int = 15
) -> float:
    r"""Mean distance between confidence and accuracy, over bins of equal width.

    $$\mathrm{ECE} = \sum_b \frac{|B_b|}{n}\, \bigl|\mathrm{acc}(B_b) - \mathrm{conf}(B_b)\bigr|$$

    It takes confidences, and so also serves tokens, whose probabilities do not fit into memory.
    `torchmetrics.classification.MulticlassCalibrationError` takes all probabilities, gathers over processes, and has
    other norms. The two differ only for a confidence of exactly 1, frequent in float32 for an overconfident model: it
    belongs to the last bin here and has a bin of its own there, which makes their value the same or larger.

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
        >>> confidence = torch.ones(4)
        >>> expected_calibration_error(confidence, torch.tensor([True, True, True, False]))
        0.25

    Source: Naeini et al. 2015; Guo et al., arXiv 1706.04599.
    """
    return reliability(confidence, correct, bins=bins).error


def reliability(confidence: Float[Tensor, "n"], correct: Bool[Tensor, "n"], *, bins: int = 15) -> Reliability:
    """Confidence and accuracy by bins of confidence: what `plotting.reliability_diagram` draws.

    Args:
        confidence: probability of the most probable outcome of each row, in [0, 1].
        correct: True where that outcome is the target.
        bins: number of bins of [0, 1]; a confidence on an edge belongs to the bin above it.

    Raises:
        ValueError: no rows, shapes that differ, or a confidence outside [0, 1].
        TypeError: `correct` is not boolean, or `bins` no int.

    Example:
        >>> by_bin = reliability(torch.tensor([0.25, 0.75, 1.0]), torch.tensor([True, False, True]), bins=2)
        >>> by_bin.count, by_bin.confidence, by_bin.correct
        ((1.0, 2.0), (0.25, 1.75), (1.0, 1.0))

    Source: Guo et al., arXiv 1706.04599.
    """
    check_floats("confidence", confidence)
    check_tensor("correct", correct)
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
    confidence, correct = confidence.detach().cpu(), correct.cpu()
    sums = reliability_sums(confidence, correct, torch.ones_like(confidence), check_count("bins", bins))
    return Reliability(*(tuple(column) for column in sums.tolist()))
