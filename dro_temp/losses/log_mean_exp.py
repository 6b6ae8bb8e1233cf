"""Losses that stream: which backend takes which rows; and those of the log-mean-exp of a row's scores."""

import math
from abc import abstractmethod
from collections.abc import Collection
from dataclasses import replace
from typing import TypeAlias, final

import torch
from torch import Tensor

from dro_temp import _faults, distributed
from dro_temp import functional as F
from dro_temp._autograd import outside_graphs
from dro_temp._tensors import log_of_size
from dro_temp._typing import PerRow
from dro_temp.functional import ScoreTransform
from dro_temp.functional.statistics import (
    NOT_AN_OUTCOME,
    LabelStanding,
    Statistic,
    label_standing,
    score_profile,
)
from dro_temp.interfaces import (
    BackendChoice,
    LinearScores,
    LossOutput,
    RobustLoss,
    Rows,
    TemperaturePredictor,
)
from dro_temp.kernels.dispatch import (
    BackendOption,
    check_backend,
    fastest_backend,
    streaming_backend,
    triton_backend,
    triton_interprets,
    triton_runs_on,
)
from dro_temp.kernels.exclusions import Exclusions
from dro_temp.kernels.pairs import exchanged_log_sums, pair_log_sums
from dro_temp.kernels.rows import GradOutput, log_mean_exp_of_matrix, log_mean_exp_rows

#: Temperatures of some rows, or what predicts them.
Taus: TypeAlias = Tensor | TemperaturePredictor

# Below this, the score matrix costs less than the Python that avoids it.
SMALL_MATRIX = 2**20

_EXCHANGED = "several processes exchange numbers per row in place of gradients"


class StreamingLoss(RobustLoss):
    """A loss that streams over scores that are products; a subclass implements `_streamed`.

    Args:
        backend: see `LogMeanExpLoss`.
    """

    def __init__(self, *, backend: BackendOption = "auto") -> None:
        super().__init__()
        self.backend = check_backend(backend)

    @final
    def choose_backend(self, rows: Rows) -> BackendChoice:
        """The backend for these rows.

        Raises:
            ValueError: the requested backend does not support these rows.
        """
        scores, option = rows.scores, self.backend
        if not isinstance(scores, LinearScores):
            return BackendChoice("reference", "the scores are a matrix already")
        if option == "reference":
            return BackendChoice("reference", "backend='reference'")
        if rows.target_distribution is not None:
            if option == "auto":
                return BackendChoice("reference", "target distributions are as large as the score matrix")
            raise ValueError(
                f"expected one target per row for backend={option!r}, received target distributions, which are as "
                "large as the score matrix that it avoids. Pass backend='auto', or class numbers."
            )
        n, m = scores.queries.shape[0], scores.keys.shape[0]
        if m == (0 if rows.target_in_support else 1):
            return BackendChoice("reference", "there are no outcomes")
        if not (scores.transform is None or isinstance(scores.transform, ScoreTransform)):
            if option == "auto":
                return BackendChoice("reference", "the transform has no derivative defined")
            raise ValueError(
                f"expected a ScoreTransform for backend={option!r}, received {scores.transform!r}, which has no "
                "derivative defined. Pass SoftCap(cap), Scale(factor) or a ScoreTransform of your own, or "
                "backend='reference'."
            )
        if option != "auto":
            return BackendChoice(option, f"backend={option!r}")
        dtype = scores.dtype
        size = n * m * dtype.itemsize
        # A number in the text would specialise a compiled graph on it.
        compiling = torch.compiler.is_compiling()
        if size <= SMALL_MATRIX:
            few = "few" if compiling else size
            return BackendChoice("reference", f"the score matrix takes {few} bytes only")
        many = "too many" if compiling else size
        name = fastest_backend(scores.queries.device, dtype)
        return BackendChoice(name, f"the score matrix would take {many} bytes")

    def _mirrored_backends(
        self, other: "StreamingLoss", rows: tuple[Rows, Rows]
    ) -> tuple[BackendChoice, BackendChoice] | None:
        """The backend of both sides; None if they cannot share their tiles."""
        first, second = rows[0].scores, rows[1].scores
        if not (isinstance(first, LinearScores) and isinstance(second, LinearScores)):
            return None
        weighted = rows[0].weight is not None or rows[1].weight is not None
        if weighted or "reference" in (self.backend, other.backend):
            return None
        groups, other_groups = rows[0].group, rows[1].group
        if (groups is not None or other_groups is not None) and not rows[0].has_mirrored_groups(rows[1]):
            return None
        if first.is_share_of_transpose_of(second):
            if rows[0].support_size == 0:
                return None
            # Not by the number of rows, which differs between processes: all must make the same choice.
            fastest = fastest_backend(first.queries.device, first.dtype)
            names = [fastest if loss.backend == "auto" else loss.backend for loss in (self, other)]
            choices = (BackendChoice(names[0], _EXCHANGED), BackendChoice(names[1], _EXCHANGED))
        elif first.is_transpose_of(second):
            choice = self.choose_backend(rows[0])  # of scores of the same size and precision
            same = other.backend == self.backend
            small = self.backend == "auto" and choice.name == "reference" and rows[0].support_size > 0
            if same and small and triton_runs_on(first.device):
                # On a GPU one kernel sums both sides of few pairs, where a matrix takes dozens of launches.
                choice = BackendChoice("triton", "one kernel sums both sides")
            choices = choice, choice if same else other.choose_backend(rows[1])
        else:
            return None
        return choices if choices[0].name == choices[1].name != "reference" else None


class LogMeanExpLoss(StreamingLoss):
    r"""A loss of the form $\varphi(\log g_i, \tau_i)$ with $\log g_i$ the log-mean-exp of row i's margins over tau.

    A subclass implements `from_log_mean_exp`. If scores are products (`LinearScores`) the base streams over them, with
    closed-form gradients and without the score matrix.

    Args:
        backend: "reference" stores the score matrix and is ordinary autograd; "torch" streams, on any device; "cpu"
            streams in C, for float32 scores on a CPU, built by the machine's compiler in a second at first use;
            "triton" streams with fused kernels on NVIDIA GPUs; "auto" takes the fastest available backend if the matrix
            would be larger than a megabyte. Scores that are a matrix already always use "reference"; on a GPU one
            kernel in each direction reads them then, unless "reference" was asked for.
    """

    #: True if a row's value depends on that row alone, without memory: gradients then need one pass.
    row_by_row: bool = True
    #: True if a row's value also depends on where its target stands at temperature 1, see `FrozenHostLoss`.
    reads_label: bool = False

    @abstractmethod
    def from_log_mean_exp(self, rows: Rows, log_g: PerRow, tau: PerRow) -> PerRow:
        """One value per row; must not read the rows' scores."""

    def is_affine(self, rows: Rows) -> bool:
        r"""Whether the values are affine in log g, $a(\tau) \log g + b(\tau)$, in all of these rows.

        Their gradient is then known before log g is, which saves a GPU one read of the scores. False is always right. A
        class that implements `from_log_mean_exp` anew says this anew as well: it is not inherited then.
        """
        return False

    def from_label(self, rows: Rows, log_g: PerRow, tau: PerRow, label: LabelStanding) -> PerRow:
        """One value per row, called instead of `from_log_mean_exp` if `reads_label`."""
        return self.from_log_mean_exp(rows, log_g, tau)

    @final
    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """From the score matrix."""
        if self.reads_label:  # an infinite margin of an impossible label would make its slope NaN
            scores = rows.dense_scores.clamp(min=NOT_AN_OUTCOME)
            excluded = rows.excluded
            scores = scores if excluded is None else scores.masked_fill(excluded, NOT_AN_OUTCOME)
            rows = replace(rows, scores=scores)
        if rows.target_distribution is None and self._has_kernels(rows):
            kernels = triton_backend(rows.target.device).fused_rows
            assert kernels is not None
            log_g = log_mean_exp_of_matrix(
                kernels,
                rows.dense_scores,
                rows.target,
                tau,
                target_in_support=rows.target_in_support,
                support_size=rows.support_size,
                exclusions=None if rows.group is None else Exclusions.of(rows),
            )
            if rows.group is not None:
                log_g = (log_g + math.log(rows.support_size) - rows.log_support_sizes(log_g)).masked_fill(
                    ~rows.valid, 0.0
                )
        else:
            log_g = F.log_mean_exp(rows.margins / tau[:, None], rows.mask)
            # Rows without outcomes have log g = -inf; finite numbers keep them inert.
            log_g = log_g.masked_fill(~rows.valid, 0.0)
        if not self.reads_label:
            return self.from_log_mean_exp(rows, log_g, tau)
        scores = rows.dense_scores.detach()
        target_score = scores.gather(1, rows.target.long()[:, None]).squeeze(1)
        return self.from_label(rows, log_g, tau, label_standing(target_score, score_profile(scores)))

    def _has_kernels(self, rows: Rows) -> bool:
        """Whether kernels may replace operations of PyTorch: on a GPU, outside of what needs ordinary autograd."""
        device = rows.target.device
        may = self.backend in ("auto", "triton") and rows.support_size > 0
        if not may or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return False
        return (
            triton_runs_on(device)
            if device.type == "cuda"
            else self.backend == "triton" and triton_interprets(device)
        )

    @final
    @outside_graphs
    def _streamed(
        self,
        rows: Rows,
        tau: Taus,
        statistics: Collection[Statistic],
        differentiable: bool,
        backend: BackendChoice,
    ) -> LossOutput:
        n, counted, all_tau = rows.target.shape[0], None, tau
        valid = None
        # With groups a row may have no outcomes.
        all_count = rows.weight is None and rows.group is None
        if not all_count and (rows.target.is_cuda or _faults.everywhere):
            # How many rows count is known on the device alone: all are kept. Zeros in place of those that do not,
            # before the products, since 0 times NaN is NaN; their gradient is zero.
            valid = rows.valid
            rows = rows.inert_products()
            tau = tau.masked_fill(~valid, 1.0) if isinstance(tau, Tensor) else tau
        elif not all_count:  # rows that do not count are left out of the pass
            counted = rows.valid.nonzero()[:, 0]
            if len(counted) == n:
                counted = None
            else:
                rows = rows.select(counted)
                tau = tau[counted] if isinstance(tau, Tensor) else tau
        scores = rows.scores
        assert isinstance(scores, LinearScores)
        output = log_mean_exp_rows(
            rows,
            tau,
            assumed_grad_output=self._mean_gradient(rows) if self.row_by_row else None,
            statistics=statistics,
            differentiable=differentiable,
            reads_label=self.reads_label,
            backend=streaming_backend(backend.name, scores.queries.device, scores.dtype),
        )
        log_g, taus, label = output.log_g, output.tau, output.label
        values = (
            self.from_log_mean_exp(rows, log_g, taus)
            if label is None
            else self.from_label(rows, log_g, taus, label)
        )
        values = self.one_per_row(values, rows)
        per_row = output.statistics
        # Temperatures that are an input are returned unchanged: hooks may read their gradient.
        taus = all_tau if isinstance(all_tau, Tensor) else output.tau
        if valid is not None:
            values = values.masked_fill(~valid, 0.0)
            per_row = {name: x.masked_fill(~valid, 0.0) for name, x in per_row.items()}
            if not isinstance(all_tau, Tensor):
                taus = taus.masked_fill(~valid, all_tau.tau_min)
        if counted is not None:
            values = _scattered(values, counted, n, 0.0)
            per_row = {name: _scattered(x, counted, n, 0.0) for name, x in per_row.items()}
            if not isinstance(all_tau, Tensor):
                taus = _scattered(taus, counted, n, all_tau.tau_min)
        return LossOutput(values, taus, backend, per_row, output.mean)

    def _mean_gradient(self, rows: Rows) -> GradOutput:
        """The gradient of the mean over rows."""
        n = rows.target.shape[0]
        share = None
        if rows.weight is not None:
            weight = rows.weight.to(rows.scores.dtype)
            share = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)  # no row may count

        def gradient(
            log_g: PerRow, tau: PerRow, block: slice, label: LabelStanding | None = None
        ) -> tuple[PerRow, PerRow]:
            with torch.enable_grad():
                log_g, tau = log_g.detach().requires_grad_(), tau.detach().requires_grad_()
                part = rows if len(log_g) == n else rows.select(block)
                values = (
                    self.from_log_mean_exp(part, log_g, tau)
                    if label is None
                    else self.from_label(part, log_g, tau, label)
                )
                weight = (
                    torch.full_like(values, 1.0 / max(n, 1))
                    if share is None
                    else share[block].to(values.dtype)
                )
                u, v = torch.autograd.grad(values, (log_g, tau), weight, materialize_grads=True)
            return u, v

        def mean(log_g: PerRow, tau: PerRow) -> Tensor:
            values = self.from_log_mean_exp(rows, log_g, tau)
            return values.mean() if share is None else (values * share.to(values.dtype)).sum()

        # What a subclass computes may depend on more (parameters, features, random numbers), and may not be affine.
        written_in = next(c for c in type(self).__mro__ if "from_log_mean_exp" in vars(c))
        affine = "is_affine" in vars(written_in) and self.is_affine(rows) and not self.reads_label
        of_numbers_alone = written_in.__module__.startswith("dro_temp.losses.")
        # On a CPU comparing gradients costs less than the mean; and of no rows there is none.
        offers_mean = n and of_numbers_alone and rows.target.is_cuda and not self.reads_label
        return GradOutput(gradient, mean if offers_mean else None, affine, reads_label=self.reads_label)

    @final
    def evaluate_mirrored(
        self, other: RobustLoss, rows: tuple[Rows, Rows], taus: tuple[Taus, Taus]
    ) -> tuple[LossOutput, LossOutput] | None:
        """See `RobustLoss.evaluate_mirrored`."""
        if not isinstance(other, LogMeanExpLoss) or self.reads_label or other.reads_label:
            return None
        backends = self._mirrored_backends(other, rows)
        # Temperatures that depend on the scores would need each side's scores twice.
        if backends is None or any(isinstance(t, TemperaturePredictor) and t.reads_scores for t in taus):
            return None
        return self._from_tiles(other, rows, taus, backends)

    @outside_graphs
    def _from_tiles(
        self,
        other: "LogMeanExpLoss",
        rows: tuple[Rows, Rows],
        taus: tuple[Taus, Taus],
        backends: tuple[BackendChoice, BackendChoice],
    ) -> tuple[LossOutput, LossOutput]:
        outputs = []
        with torch.autocast(rows[0].target.device.type, enabled=False):
            self.check_rows(rows[0])
            other.check_rows(rows[1])
            tensors = [
                tau if isinstance(tau, Tensor) else tau.predict(r) for tau, r in zip(taus, rows, strict=True)
            ]
            log_sums = _pair_log_sums(rows, tensors, backends[0].name)
            for loss, r, tau, log_sum, backend in zip(
                (self, other), rows, tensors, log_sums, backends, strict=True
            ):
                if r.group is not None:
                    outputs.append(LossOutput(loss._in_groups(r, log_sum, tau), tau, backend))
                    continue
                log_g = log_sum - log_of_size(r.support_size, log_sum)
                values = loss.from_log_mean_exp(r, log_g, tau.to(log_g.dtype))
                outputs.append(LossOutput(loss.one_per_row(values, r), tau, backend))
        return outputs[0], outputs[1]

    def _in_groups(self, rows: Rows, log_sum: PerRow, tau: PerRow) -> PerRow:
        """Values of rows with groups, of which each has a number of outcomes of its own, and some have none."""
        empty = ~rows.valid
        log_g = (log_sum - rows.log_support_sizes(log_sum)).masked_fill(empty, 0.0)
        values = self.from_log_mean_exp(rows, log_g, tau.to(log_g.dtype))
        return self.one_per_row(values, rows).masked_fill(empty, 0.0)


def _pair_log_sums(rows: tuple[Rows, Rows], taus: list[Tensor], name: str) -> tuple[PerRow, PerRow]:
    """Log-sums of the rows of both sides, over all columns but their own."""
    first, second = rows[0].scores, rows[1].scores
    assert isinstance(first, LinearScores)
    assert isinstance(second, LinearScores)
    x, y = first.queries, second.queries
    backend = streaming_backend(name, x.device, first.dtype)
    exclusions = None if rows[0].group is None else (Exclusions.of(rows[0]), Exclusions.of(rows[1]))
    if first.local_keys is None:
        sums = pair_log_sums(
            x, y, *taus, exclusions=None if exclusions is None else exclusions[0], backend=backend
        )
        return sums.rows, sums.columns
    return exchanged_log_sums(
        (x, y),
        (second.keys, first.keys),
        (taus[0], taus[1]),
        exclusions=exclusions,
        offset=int(rows[0].target[0]) if len(rows[0]) else 0,
        gather=lambda local: distributed.gather_rows(local)[0],
        backend=backend,
    )


def _scattered(x: Tensor, rows: Tensor, n: int, fill: float) -> Tensor:
    """Values of some of n rows in their positions, `fill` elsewhere."""
    return x.new_full((n,), fill).index_copy(0, rows, x)
