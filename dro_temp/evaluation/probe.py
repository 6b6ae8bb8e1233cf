"""Classification by a linear layer on frozen features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dro_temp._checks import check_count, check_positive, check_several
from dro_temp.evaluation._batches import with_progress
from dro_temp.evaluation._inputs import check_features, check_labels, expected_hits, in_blocks

#: Features [n d] and class numbers [n].
Labelled: TypeAlias = tuple[Tensor, Tensor]
#: Weight [d c] and bias [c] of a linear classifier.
Linear: TypeAlias = tuple[Tensor, Tensor]

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

    For each strength lambda, from the strongest to the weakest, L-BFGS finds the minimum on `train`, starting from the
    previous one. The lambda of highest accuracy on `validation` (of several, the strongest) is then refitted to
    `train` and `validation` together, and tested. It is deterministic. scikit-learn's C is $1 / (n \lambda)$.

    Args:
        train: features [n d] and class numbers [n]. Features are used unscaled: normalise or standardise them where
            their scale means nothing.
        validation: the same, to choose the strength on.
        test: the same, used once.
        strengths: values of lambda to choose from, each > 0.
        steps: maximum number of iterations of L-BFGS for one strength.
        progress: show a progress bar.

    Raises:
        ValueError: features that are no finite matrices of one width, labels that do not fit, or no strength or one
            that is not positive.
        TypeError: features or labels of a wrong dtype.

    Example:
        >>> label = torch.arange(30) % 3
        >>> split = torch.nn.functional.one_hot(label).float(), label
        >>> linear_probe(split, split, split).accuracy
        100.0

    Source: Radford et al., arXiv 2103.00020, appendix A.3.
    """
    splits = _checked({"train": train, "validation": validation, "test": test})
    check_several("strengths", strengths, "Pass strengths=(1e-3, 1e-5).")
    for strength in strengths:
        check_positive("strength", strength)
    order = sorted({float(strength) for strength in strengths}, reverse=True)
    if not order:
        raise ValueError("expected at least one strength, received none. Pass strengths=(1e-3, 1e-5).")
    check_count("steps", steps)
    (x, label), on_validation, on_test = splits
    classes = 1 + max(int(y.max()) for _, y in splits)
    model = x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    models, accuracy = {}, {}
    with torch.no_grad():
        for strength in with_progress(order, "linear probe" if progress else None):
            model = models[strength] = fitted(x, label, strength, model, steps)
            accuracy[strength] = _accuracy(model, *on_validation)
        best = max(order, key=accuracy.__getitem__)  # the first of several
        both = torch.cat([x, on_validation[0]]), torch.cat([label, on_validation[1]])
        model = fitted(*both, best, models[best], steps)
    return ProbeReport(_accuracy(model, *on_test), best, accuracy)


def _checked(splits: dict[str, Labelled]) -> list[Labelled]:
    for name, split in splits.items():
        if not (isinstance(split, tuple | list) and len(split) == 2):
            raise TypeError(
                f"expected {name} as a pair, received {type(split).__name__}. Pass {name}=(features, label)."
            )
    check_features(**{name: x for name, (x, _) in splits.items()})
    dtype = torch.float64 if any(x.dtype == torch.float64 for x, _ in splits.values()) else torch.float32
    device = splits["train"][0].device
    return [
        (x.to(device, dtype), check_labels(f"{name}_label", y, len(x)).to(device))
        for name, (x, y) in splits.items()
    ]


def _accuracy(model: Linear, x: Tensor, label: Tensor) -> float:
    weight, bias = model
    blocks = in_blocks(len(bias), x, label)
    hits = (expected_hits(torch.addmm(bias, part, weight), right, (1,)) for part, right in blocks)
    return 100.0 * math.fsum(float(hit.sum()) for hit in hits) / len(x)


def fitted(x: Tensor, label: Tensor, strength: float, start: Linear, steps: int) -> Linear:
    """The minimum of the penalised mean cross-entropy, by L-BFGS with a line search: there is no learning rate.

    The problem is convex: `start` decides only how long it takes.
    """
    weight, bias = (torch.nn.Parameter(p.clone()) for p in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        max_eval=2 * steps,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    @torch.enable_grad()
    def loss_and_gradient() -> Tensor:
        optimizer.zero_grad()
        losses = [0.5 * strength * weight.square().sum()]
        torch.autograd.backward(losses)
        for part, right in in_blocks(len(bias), x, label):  # logits of all items would dominate memory
            loss = cross_entropy(torch.addmm(bias, part, weight), right, reduction="sum") / len(x)
            torch.autograd.backward(loss)
            losses.append(loss)
        return torch.stack(losses).detach().sum()

    optimizer.step(loss_and_gradient)  # type: ignore[arg-type, no-untyped-call]
    return weight.data, bias.data
