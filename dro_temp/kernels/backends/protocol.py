"""The protocol of backends: what is computed on a block of scores while it is in memory.

A backend is a module with these functions: `torch`, on any device; `cpu`, in C; `triton`, fused for NVIDIA GPUs. Each
is tested against `torch`, and `torch` against `reference`, which stores the score matrix and is ordinary autograd.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, RowIndex, Scores
from dro_temp.functional.statistics import ScoreProfile


@dataclass(frozen=True)
class SoftmaxPartials:
    r"""Row sums of $e_{ij} = e^{(s_{ij} - \max_j s_{ij}) / \tau_i}$: a softmax that is not normalised.

    Args:
        row_max: largest score of each row, [rows].
        sum_exp: sum of each row's $e_{ij}$, >= 1, [rows].
        mean_excess: $\mathrm{E}_p[s] - \max s$ under p = e / sum_exp, <= 0, [rows]; None if it was not computed.
        weights: e, [rows m], or None.
    """

    row_max: PerRow
    sum_exp: PerRow
    mean_excess: PerRow | None
    weights: Scores | None = None


@dataclass
class ColumnSums:
    r"""Running sums of each column under $e^{(s_{ij} - \max_i s_{ij}) / \tau_j}$.

    Args:
        column_max: largest score so far, [m].
        sum_exp: sum of the weights, [m].
        moment: sum of weight times score, [m].
    """

    column_max: Tensor
    sum_exp: Tensor
    moment: Tensor


@dataclass(frozen=True)
class RowBlock:
    """A block of products, and what makes scores of them as they are read.

    Args:
        scores: [n m].
        target: column of each row's target.
        target_in_support: whether the target is one of the outcomes.
        log_size: log of the number of outcomes.
        bias: added as they are read, [m] in the precision of the sums, or None.
        cap: of a soft cap, or None.
        is_capped: whether the cap has been applied, so that its slope alone is missing.
    """

    scores: Scores
    target: RowIndex
    target_in_support: bool
    log_size: float
    bias: Tensor | None = None
    cap: float | None = None
    is_capped: bool = False


@dataclass(frozen=True)
class TiltedRows:
    """Sums of rows under their temperatures, each [n] in the precision of the temperatures.

    Args:
        log_g: log-mean-exp of the margins over tau.
        target_score: score of each row's target.
        mean: E_p[s].
        row_max: largest score.
        sum_exp: sum of e^((s - row_max) / tau).
        variance: Var_p[s], or None.
    """

    log_g: PerRow
    target_score: PerRow
    mean: PerRow
    row_max: PerRow
    sum_exp: PerRow
    variance: PerRow | None


@dataclass(frozen=True)
class Coefficients:
    """Gradients of the loss with respect to a row's sums, each [n].

    Args:
        log_g: u.
        mean: b, or None if the loss does not depend on it.
        target_score: c, beside that through log_g; given with `mean`.
    """

    log_g: PerRow
    mean: PerRow | None = None
    target_score: PerRow | None = None


class FusedRows(Protocol):
    """Kernels that do everything between the products of a block of rows, see `rows.fused`."""

    def tilt_rows(
        self,
        block: RowBlock,
        tau: PerRow,
        *,
        variance: bool = False,
        known: Coefficients | None = None,
        out: Scores | None = None,
    ) -> TiltedRows:
        """Sums of each row and, from coefficients that are known already, the gradient of the scores.

        Args:
            block: the scores.
            tau: temperature of each row, in the precision of the sums.
            variance: whether to compute it.
            known: coefficients that do not depend on the sums; None: the scores stay.
            out: [rows m], for the gradient; None: over the scores.
        """

    def write_gradient(
        self, block: RowBlock, tau: PerRow, rows: TiltedRows, known: Coefficients, out: Scores | None = None
    ) -> None:
        """The gradient of the scores, given their sums; see `tilt_rows`."""

    def scale_(self, x: Tensor, factor: Tensor) -> Tensor:
        """`x *= factor`, contiguous x and one number on its device; a factor of one reads and writes nothing."""


class Scorer(Protocol):
    """Scores of queries with keys that were prepared once."""

    def __call__(self, queries: Features, out: Scores, scale: float = 1.0) -> Scores:
        """`out = scale * queries @ keys.T`, from the unrounded factors, in float32 or better."""


class Backend(Protocol):
    """A module of kernels."""

    #: Kernels that replace the functions below for rows, where the backend has them.
    fused_rows: FusedRows | None

    def scorer(self, queries: Features, keys: Features) -> Scorer:
        """A function that scores queries, of the dtype and device of these, with keys."""

    def accumulate_(
        self, total: Tensor, weights: Scores, x: Features, factor: torch.dtype, *, first: bool
    ) -> None:
        """`total += weights.T @ x`, multiplied in the precision `factor`; `first` overwrites `total`."""

    def softmax_partials_(
        self, scores: Scores, tau: PerRow, *, mean_excess: bool, factor: torch.dtype | None = None
    ) -> SoftmaxPartials:
        """Row sums and weights; the scores are overwritten by the weights.

        Args:
            scores: [rows m].
            tau: temperature of each row.
            mean_excess: whether to compute it.
            factor: precision of the weights; None: that of the scores. Sums are taken before rounding.
        """

    def row_sums(self, scores: Scores, tau: PerRow) -> SoftmaxPartials:
        """Row sums alone; the scores stay."""

    def column_sums_(self, scores: Scores, tau: Tensor, sums: ColumnSums) -> None:
        """Add a stripe of rows to the column sums; the scores stay."""

    def pair_logits_grad_(
        self,
        scores: Scores,
        tau_rows: PerRow,
        max_rows: PerRow,
        share_rows: PerRow,
        tau_columns: Tensor,
        max_columns: Tensor,
        share_columns: Tensor,
    ) -> Scores:
        r"""Gradient with respect to a stripe of scores, in their place.

        $G_{ij} = a_i e^{(s_{ij} - M_i) / \tau_i} + b_j e^{(s_{ij} - M_j) / \tau_j}$

        Args:
            scores: s, [rows m].
            tau_rows: temperature of each row.
            max_rows: M, largest score of each row.
            share_rows: a, the gradient of the row's log-sum, over tau and over its sum of weights.
            tau_columns: as for rows, of each column.
            max_columns: as for rows.
            share_columns: as for rows.
        """

    def moments(
        self, scores: Scores, target: RowIndex, target_in_support: bool, names: Collection[str]
    ) -> dict[str, PerRow]:
        """Those of max, mean, std and norm that are in `names`, over the support; the scores stay."""

    def profile(self, scores: Scores) -> ScoreProfile:
        """Statistics that a network may read, of each row; the scores stay."""
