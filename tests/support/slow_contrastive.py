"""The contrastive family written out pair by pair in float64: loops, exp and log, nothing of the library."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


def encode(linear, inputs: Tensor) -> list[list[Tensor]]:
    """Unit vectors, number by number."""
    vectors = []
    for x in inputs:
        out = [
            sum((w * v for w, v in zip(row, x, strict=True)), b)
            for row, b in zip(linear.weight, linear.bias, strict=True)
        ]
        norm = sum(o * o for o in out) ** 0.5
        vectors.append([o / norm for o in out])
    return vectors


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return sum(p * q for p, q in zip(a, b, strict=True))


def table(a: list[list[Tensor]], b: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[dot(x, y) for y in b] for x in a]


def transposed(s: list[list[Tensor]]) -> list[list[Tensor]]:
    return [list(column) for column in zip(*s, strict=True)]


def infonce(s: list[list[Tensor]], tau: Tensor) -> Tensor:
    """Mean over rows of -log of the target's share."""
    total = 0.0
    for i, row in enumerate(s):
        total = total - ((row[i] / tau).exp() / sum((value / tau).exp() for value in row)).log()
    return total / len(s)


def siglip(s: list[list[Tensor]], tau: Tensor, bias: Tensor) -> Tensor:
    """Sum over all pairs of -log of the probability of the pair's own label, over the number of rows."""
    total = 0.0
    for i, row in enumerate(s):
        for j, value in enumerate(row):
            y = 1.0 if i == j else -1.0
            total = total + (1.0 + (-y * (value / tau + bias)).exp()).log()
    return total / len(s)


def cyclic(x, y, in_modal: float, cross_modal: float) -> Tensor:
    """CyCLIP's two sums over pairs, divided by the number of pairs."""
    n, total = len(x), 0.0
    for i in range(n):
        for j in range(n):
            total = total + in_modal * (dot(x[i], x[j]) - dot(y[i], y[j])) ** 2
            total = total + cross_modal * (dot(x[i], y[j]) - dot(x[j], y[i])) ** 2
    return total / n


def moving_average(gamma: Callable[[int], float]) -> Callable[[float, float, int], float]:
    return lambda u, g, step: (1 - gamma(step)) * u + gamma(step) * g


def scent(alpha: float) -> Callable[[float, float, int], float]:
    """y' = (y + e^a) / (1 + e^a g) with y = 1/u."""
    return lambda u, g, step: (1 + math.exp(alpha) * g) / (1 / u + math.exp(alpha))


@dataclass
class Memory:
    """One view of the global family: u of every sample, and the compositional value and gradient.

    Args:
        rule: (u, g, step) to the new u.
        scaled: True for tau (log u + rho), False for log u.
        rho: radius.
    """

    rule: Callable[[float, float, int], float]
    scaled: bool
    rho: float = 0.0
    u: dict[int, float] = field(default_factory=dict)
    step: int = 0
    gradients: dict[int, float] = field(default_factory=dict)  # dF/dtau of the last batch, by sample

    def loss(self, s: list[list[Tensor]], tau: list[Tensor], index: list[int]) -> tuple[float, Tensor]:
        """The mean value over rows, and a number whose gradient is the compositional one."""
        value, surrogate, n = 0.0, 0.0, len(s)
        for i, row in enumerate(s):
            t = tau[i].item()
            terms = [((row[j] - row[i]) / t).exp() for j in range(n) if j != i]
            g = sum(term.item() for term in terms) / (n - 1)
            u = self.rule(self.u[index[i]], g, self.step) if index[i] in self.u else g
            self.u[index[i]] = u
            h = [(row[j] - row[i]).item() for j in range(n) if j != i]
            mean_h = (
                sum(e.item() * k for e, k in zip(terms, h, strict=True)) / (n - 1) / u
            )  # E_w[h], w = e / u
            factor = t if self.scaled else 1.0
            slope = self.rho + math.log(u) - mean_h / t if self.scaled else -mean_h / t**2
            self.gradients[index[i]] = slope
            value += factor * (math.log(u) + (self.rho if self.scaled else 0.0)) / n
            surrogate = surrogate + factor * sum(terms) / (n - 1) / u / n + slope * tau[i] / n
        self.step += 1
        return value, surrogate
