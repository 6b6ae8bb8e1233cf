"""What one sweep over rows of products is asked for, and what it returns."""

from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from dro_temp._compiler import log_of_size
from dro_temp._pytree import pytree
from dro_temp._typing import Features, Mask, PerRow, RowIndex, Scores
from dro_temp.functional.transforms import ScoreTransform
from dro_temp.kernels.passes import Profile

Statistic: TypeAlias = Literal["log_sum_exp", "kl", "entropy", "max", "mean", "std", "norm"]
STATISTICS: tuple[Statistic, ...] = ("log_sum_exp", "kl", "entropy", "max", "mean", "std", "norm")


@dataclass(frozen=True)
class Products:
    """Rows of scores that are products, with one target each.

    Args:
        queries: one vector per row.
        keys: one vector per outcome.
        target: column of each row's target.
        bias: one number per outcome.
        transform: elementwise function of the products, or None.
        target_in_support: False to leave each row's target out of its support.
        scale: multiplies the products of queries and keys.
    """

    queries: Features
    keys: Features
    target: RowIndex
    bias: PerRow | None = None
    transform: ScoreTransform | None = None
    target_in_support: bool = True
    scale: float = 1.0

    @property
    def support_size(self) -> int:
        """Number of outcomes in each row's support."""
        return self.keys.shape[0] - (0 if self.target_in_support else 1)


@dataclass(frozen=True)
class Block:
    """Some rows, while their scores are in memory.

    Args:
        rows: which rows.
        scores: their scores, detached; gone when the sweep moves on.
        mask: True inside the support, or None.
        project: `(weight, shift) -> (scores - shift) @ weight.T`, the cheapest way.
        profile: their profiles, the cheapest way.
    """

    rows: slice
    scores: Scores
    mask: Mask | None
    project: Callable[[Tensor, PerRow | None], Tensor]
    profile: Callable[[], Profile]


class TauOf(Protocol):
    """Temperatures that depend on the scores themselves."""

    #: Trained; gradient flows to them.
    parameters: tuple[Tensor, ...]
    #: True if calls draw random numbers (dropout).
    random: bool

    @abstractmethod
    def __call__(self, block: Block, parameters: tuple[Tensor, ...]) -> PerRow:
        """Temperature of each row of the block, computed with these parameters in place of its own."""


#: `(log_g, tau, rows) -> (dL/dlog_g, dL/dtau)`: what will come back for these rows, up to a common factor.
Expected: TypeAlias = Callable[[PerRow, PerRow, slice], tuple[PerRow, PerRow]]


@pytree()
@dataclass(frozen=True)
class LogMeanExp:
    r"""$\log g_i = \log \frac1m \sum_j e^{(s_{ij} - s_{i t_i}) / \tau_i}$ of each row, and what was seen on the way.

    Args:
        log_g: with gradient to queries, keys, bias, tau and what tau was predicted with.
        tau: the temperatures, with gradient if they were predicted in the sweep.
        statistics: what was asked for, detached.
    """

    log_g: PerRow
    tau: PerRow
    statistics: dict[str, PerRow]


def support_mask(scores: Scores, target: RowIndex, target_in_support: bool) -> Mask | None:
    """True inside the support; None where every outcome is in it."""
    if target_in_support:
        return None
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, target[:, None], False)


def tilted_statistics(
    log_g: PerRow, target_over_tau: PerRow, mean_over_tau: PerRow, size: int, wanted: Collection[str]
) -> dict[str, PerRow]:
    r"""Log-sum-exp of s/tau, KL(p||U) and entropy of p = softmax(s/tau).

    Args:
        log_g: log-mean-exp of margins over tau.
        target_over_tau: the target's score over tau.
        mean_over_tau: E_p[s] over tau.
        size: m.
        wanted: names.
    """
    log_m = log_of_size(size, log_g)
    kl = mean_over_tau - target_over_tau - log_g
    every = {"log_sum_exp": log_g + log_m + target_over_tau, "kl": kl, "entropy": log_m - kl}
    return {name: value for name, value in every.items() if name in wanted}
