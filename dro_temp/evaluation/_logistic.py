"""Multinomial logistic regression on features that are given."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp.evaluation._features import BLOCK


@dataclass(frozen=True)
class Logistic:
    """A linear classifier: scores are `x @ weight + bias`."""

    weight: Tensor
    bias: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """Scores [n c]."""
        return torch.addmm(self.bias, x, self.weight)


def zeros(x: Tensor, classes: int) -> Logistic:
    """The classifier that knows nothing."""
    return Logistic(x.new_zeros(x.shape[1], classes), x.new_zeros(classes))


def fitted(x: Tensor, label: Tensor, strength: float, start: Logistic, steps: int) -> Logistic:
    r"""The minimum of $\frac{1}{n} \sum_i \mathrm{CE}(W^\top x_i + b, y_i) + \frac{\lambda}{2} \|W\|^2$.

    L-BFGS with a line search: no learning rate and no random number. The problem is convex, so that `start`
    decides only how long it takes.

    Args:
        x: features [n d].
        label: [n].
        strength: lambda, > 0.
        start: where to begin.
        steps: iterations at most.
    """
    weight = torch.nn.Parameter(start.weight.clone())
    bias = torch.nn.Parameter(start.bias.clone())
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=steps,
        max_eval=2 * steps,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> Tensor:
        with torch.no_grad():
            loss, weight.grad, bias.grad = _slopes(x, label, Logistic(weight.data, bias.data))
            weight.grad += strength * weight
            return loss + 0.5 * strength * weight.square().sum()

    # The gradient is written down, not traced: logits of all items at once would be the largest thing in memory.
    optimizer.step(loss_and_gradient)  # type: ignore[arg-type, no-untyped-call]
    return Logistic(weight.data, bias.data)


def _slopes(x: Tensor, label: Tensor, model: Logistic) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy, and its gradient with respect to weight and bias."""
    rows = max(1, BLOCK // len(model.bias))
    loss, weight, bias = x.new_zeros(()), torch.zeros_like(model.weight), torch.zeros_like(model.bias)
    for part, right in zip(torch.split(x, rows), torch.split(label, rows), strict=True):
        log_p = model.scores(part).log_softmax(dim=1)
        loss -= log_p.gather(1, right[:, None]).sum()
        slope = log_p.exp_()
        slope[torch.arange(len(part), device=x.device), right] -= 1
        weight += part.T @ slope
        bias += slope.sum(dim=0)
    return loss / len(x), weight / len(x), bias / len(x)
