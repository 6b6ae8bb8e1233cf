"""The paper's estimator for one side of a batch of pairs, in plain PyTorch and without this library."""

import torch
from torch import Tensor

from benchmarks.pairs.problem import GAMMA, RHO


class Side:
    """Moving averages of one side, and the loss whose gradient they correct.

    Exponents are kept small by a running maximum per sample, as in code around the paper; the library's own
    averages are logarithms.

    Args:
        num_samples: size of the data set.
        device: where the tables live.
    """

    def __init__(self, num_samples: int, device: torch.device) -> None:
        self.mean = torch.zeros(num_samples, device=device)
        self.top = torch.full((num_samples,), -1e4, device=device)

    def __call__(self, similarities: Tensor, tau: Tensor, index: Tensor) -> Tensor:
        """Mean over rows; row i of the similarities has its partner in column i.

        Args:
            similarities: [n n], with gradient.
            tau: temperature of each row, with gradient.
            index: the rows' numbers in the data set.
        """
        n = len(similarities)
        margins = similarities - similarities.diagonal()[:, None]
        scaled = (margins / tau[:, None]).detach()
        others = ~torch.eye(n, dtype=torch.bool, device=scaled.device)

        stored, before = self.mean[index], self.top[index]
        top = torch.maximum(before, scaled.amax(1))
        exponentials = (scaled - top[:, None]).exp() * others
        now = exponentials.sum(1) / (n - 1)
        averaged = (1 - GAMMA) * stored * (before - top).exp() + GAMMA * now
        mean = torch.where(stored == 0, now, averaged)  # first visit: nothing to average with
        self.mean[index], self.top[index] = mean, top

        weights = exponentials / (mean[:, None] * (n - 1))
        # Gradients: the worst case's weights for the margins, rho - KL for the temperatures.
        tau_grad = mean.log() + top + RHO - (weights * scaled).sum(1)
        return ((weights * margins).sum(1) + tau * tau_grad).mean()
