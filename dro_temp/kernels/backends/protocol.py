"""The protocol of backends: what is computed on a block of scores while it is in memory.

A backend is a module with these functions: `torch`, on any device; `cpu`, in C; `triton`, fused for NVIDIA GPUs. Each
is tested against `torch`, and `torch` against `reference`, which stores the score matrix and is ordinary autograd.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from dro_temp._typing import Features, PerRow, RowIndex, Scores
from dro_temp.functional.statistics import ScoreProfile

#: Numbers of rows and of columns, int32: a score is excluded where two are equal, or either is `functional.LEFT_OUT`,
#: but for targets.
Groups: TypeAlias = tuple[Tensor, Tensor]


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
        groups: of the rows, [n], and of the columns, [m], where these exclude some outcomes; or None.
    """

    scores: Scores
    target: RowIndex
    target_in_support: bool
    log_size: float
    bias: Tensor | None = None
    cap: float | None = None
    is_capped: bool = False
    groups: Groups | None = None


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


@dataclass(frozen=True)
class SideSums:
    r"""Sums of each row of one side of pairs over the other side's rows but its own, each [n].

    Args:
        paired_score: score of each row with its own partner.
        maximum: largest other score, M.
        sum_exp: sum of the others' weights $e^{(s - M) / \tau}$.
        mean_excess: mean of the others' scores under the weights, minus M.
        log_sum: log of the sum relative to the paired score, $\log \sum e^{(s - s_{\mathrm{own}}) / \tau}$.
        slope: its derivative with respect to tau.
    """

    paired_score: Tensor
    maximum: Tensor
    sum_exp: Tensor
    mean_excess: Tensor
    log_sum: Tensor
    slope: Tensor


@dataclass(frozen=True)
class SideShares:
    """What one side adds to the gradient of a score, `share e^((s - maximum) / tau)`, each [n].

    Args:
        tau: temperature.
        maximum: largest other score.
        share: gradient of the log-sum, over tau and over its sum of weights.
    """

    tau: Tensor
    maximum: Tensor
    share: Tensor


@dataclass(frozen=True)
class PairGradient:
    """The gradient with respect to the scores [n m] of pairs, from numbers per row and per column.

    Args:
        paired: gradient of each row's paired score, [n].
        rows: of the rows, [n].
        columns: of the columns, [m].
    """

    paired: Tensor
    rows: SideShares
    columns: SideShares


class FusedPairs(Protocol):
    """Kernels that sum pairs, and write their gradient, without the scores in memory; see `pairs.tiled`."""

    def takes(self, queries: Features, keys: Features) -> bool:
        """Whether they are faster than products by the library, for these features."""

    def sum_tiles(
        self,
        queries: Features,
        keys: Features,
        tau_rows: PerRow,
        tau_columns: Tensor | None,
        *,
        offset: int,
        rows: SideSums,
        groups: Groups | None = None,
    ) -> Tensor | None:
        """Sums of all rows, written into `rows`; returns column sums of tiles, [tiles 3 m], if columns have a tau.

        A row or column of which groups leave nothing has a sum of zero, and a log-sum of -inf.
        """

    def merge_tiles(self, parts: Tensor, tau: Tensor, sums: SideSums, *, running: bool) -> None:
        """Merge sums of tiles into `sums`, whose paired scores are known.

        Args:
            parts: [tiles 3 n].
            tau: [n].
            sums: overwritten but for the paired scores.
            running: whether they hold sums of earlier tiles, to be added to.
        """

    def write_pair_gradient(
        self,
        queries: Features,
        keys: Features,
        gradient: PairGradient,
        *,
        offset: int,
        out: Scores,
        groups: Groups | None = None,
    ) -> None:
        """The gradient of the scores of some rows, [n m], in the precision of `out`."""


@dataclass(frozen=True)
class SideLogits:
    """What makes logits of one side's scores, `s / tau + bias`, and what its values count in the loss.

    Args:
        tau: temperature of each row, [n].
        bias: [1].
        share: gradient of the loss with respect to each row's value, over tau, [n]; None: not known yet.
    """

    tau: Tensor
    bias: Tensor
    share: Tensor | None = None


class FusedSigmoid(Protocol):
    """Kernels that sum the logistic losses of all pairs, and write their gradient; see `pairs.sigmoid`.

    `target` is the positive column of each row; every other column is a negative.
    """

    def takes(self, queries: Features, keys: Features) -> bool:
        """Whether they are faster than products by the library, for these features."""

    def sum_sigmoid_tiles(
        self,
        queries: Features,
        keys: Features,
        target: RowIndex,
        rows: SideLogits,
        columns: SideLogits | None,
        *,
        slopes: bool,
        groups: Groups | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Sums of each row, [3 n], and of each column, [3 m], if these have logits.

        They are those of the losses, of their derivatives q with respect to the logits, and of q s; without `slopes`
        the first alone, [1 n] and [1 m].
        """

    def write_sigmoid_gradient(
        self,
        queries: Features,
        keys: Features,
        target: RowIndex,
        rows: SideLogits,
        columns: SideLogits | None,
        *,
        out: Scores,
        groups: Groups | None = None,
    ) -> None:
        """The gradient of the scores of some rows, [n m], in the precision of `out`, from the sides' shares."""


class Scorer(Protocol):
    """Scores of queries with keys that were prepared once."""

    def __call__(self, queries: Features, out: Scores, scale: float = 1.0) -> Scores:
        """`out = scale * queries @ keys.T`, from the unrounded factors, in float32 or better."""


class Backend(Protocol):
    """A module of kernels."""

    #: Kernels that replace the functions below for rows, where the backend has them.
    fused_rows: FusedRows | None
    #: The same for pairs.
    fused_pairs: FusedPairs | None
    #: The same for pairs that are classified one by one.
    fused_sigmoid: FusedSigmoid | None

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
