"""Classification by a linear layer on frozen features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dro_temp._checks import check_count, check_positive, check_several
from dro_temp.evaluation._features import BLOCK, check_features, check_labels, expected_hits
from dro_temp.evaluation._logistic import Logistic, fitted, zeros
from dro_temp.evaluation._progress import shown

#: Features [n d] and class numbers [n].
Labelled: TypeAlias = tuple[Tensor, Tensor]

STRENGTHS = tuple(10.0**-power for power in range(9))


@dataclass(frozen=True)
class ProbeReport:
    """What a linear layer on frozen features achieves.

    Args:
        accuracy: on the test split, in percent.
        strength: of the L2 penalty, chosen on the validation split.
        validation: accuracy on the validation split, in percent, by strength. Where the best is the first or the
            last one, pass more strengths.
    """

    accuracy: float
    strength: float
    validation: dict[float, float]


def linear_probe(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    strengths: Sequence[float] = STRENGTHS,
    steps: int = 1000,
    progress: bool = False,
) -> ProbeReport:
    r"""Accuracy of multinomial logistic regression on frozen features.

    $$\min_{W, b}\ \frac{1}{n} \sum_i \mathrm{CE}(W^\top x_i + b,\ y_i) + \frac{\lambda}{2} \|W\|^2$$

    For each strength lambda the minimum on `train` is found by L-BFGS, from the strongest penalty to the weakest,
    each from where the last ended. The lambda of highest accuracy on `validation` (of several, the strongest) is
    then fitted to `train` and `validation` together, and tested. There is no randomness in it. scikit-learn's
    C is $1 / (n \lambda)$.

    Args:
        train: features [n d] and class numbers [n]. Features are taken as they come: bring them to length one, or
            standardise them, where their scale means nothing.
        validation: the same, to choose the strength on.
        test: the same, looked at once.
        strengths: values of lambda to choose from, each > 0.
        steps: iterations of L-BFGS for one strength, at most.
        progress: show a progress bar.

    Raises:
        ValueError: features that are no finite matrices of one width, labels that do not fit, or no strength or one
            that is not positive.
        TypeError: features or labels of a wrong dtype.
        ImportError: `progress` without rich.

    Example:
        >>> label = torch.arange(30) % 3
        >>> split = torch.nn.functional.one_hot(label).float(), label
        >>> linear_probe(split, split, split).accuracy
        100.0

    Source: Radford et al., arXiv 2103.00020, appendix A.3.
    """
    splits = _checked(train, validation, test)
    check_several("strengths", strengths, "Pass strengths=(1e-3, 1e-5).")
    for strength in strengths:
        check_positive("strength", strength)
    order = sorted({float(strength) for strength in strengths}, reverse=True)
    if not order:
        raise ValueError("expected at least one strength, received none. Pass strengths=(1e-3, 1e-5).")
    check_count("steps", steps)
    (x, label), on_validation, on_test = splits
    model = zeros(x, 1 + max(int(y.max()) for _, y in splits))
    found: dict[float, tuple[float, Logistic]] = {}
    with torch.no_grad():
        for strength in shown(order, "linear probe" if progress else None):
            model = fitted(x, label, strength, model, steps)
            found[strength] = _accuracy(model, *on_validation), model
        best = max(order, key=lambda strength: found[strength][0])  # the first of several
        more_x, more_label = torch.cat([x, on_validation[0]]), torch.cat([label, on_validation[1]])
        model = fitted(more_x, more_label, best, found[best][1], steps)
    return ProbeReport(_accuracy(model, *on_test), best, {s: found[s][0] for s in order})


def _checked(*splits: Labelled) -> list[Labelled]:
    names = ("train", "validation", "test")
    for name, split in zip(names, splits, strict=True):
        if not (isinstance(split, tuple | list) and len(split) == 2):
            raise TypeError(
                f"expected {name} as a pair of features and labels, received {type(split).__name__}. Pass "
                f"{name}=(features, label)."
            )
    check_features(**{name: x for name, (x, _) in zip(names, splits, strict=True)})
    dtype = torch.float64 if any(x.dtype == torch.float64 for x, _ in splits) else torch.float32
    device = splits[0][0].device
    return [
        (x.to(device, dtype), check_labels(f"{name}_label", y, len(x)).to(device))
        for name, (x, y) in zip(names, splits, strict=True)
    ]


def _accuracy(model: Logistic, x: Tensor, label: Tensor) -> float:
    rows = max(1, BLOCK // len(model.bias))
    parts = zip(torch.split(x, rows), torch.split(label, rows), strict=True)
    hits = math.fsum(float(expected_hits(model.scores(a), b, (1,)).sum()) for a, b in parts)
    return 100.0 * hits / len(x)
