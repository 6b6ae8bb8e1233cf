"""The logistic loss of every pair by itself."""

from collections.abc import Collection
from typing import final

import torch
from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._autograd import outside_graphs
from dro_temp._checks import check_number
from dro_temp._typing import PerRow
from dro_temp.functional import ScoreTransform
from dro_temp.functional.kl import IMPOSSIBLE
from dro_temp.functional.statistics import Statistic
from dro_temp.interfaces import (
    BackendChoice,
    LinearScores,
    LossOutput,
    RobustLoss,
    Rows,
    TemperaturePredictor,
)
from dro_temp.kernels.dispatch import BackendOption, streaming_backend
from dro_temp.kernels.exclusions import Exclusions
from dro_temp.kernels.pairs.sigmoid import exchanged_sigmoid_losses, sigmoid_losses
from dro_temp.losses.log_mean_exp import StreamingLoss, Taus


class SigmoidLoss(StreamingLoss):
    r"""$-\sum_j \log \sigma\left(y_{ij} (s_{ij} / \tau_i + b)\right)$, $y_{ij} = 1$ at the target and $-1$ elsewhere.

    Every pair is a classification of its own: no row is normalised. The mean over rows is SigLIP's sum over all
    pairs divided by the number of rows. It reads the scores themselves, not margins: adding a constant to every score
    changes the value; the learnable bias b absorbs it. All columns count, whatever `target_in_support` says.

    Scores that are products (`LinearScores`) are streamed, both sides of pairs from one set of tiles. The score matrix
    is needed for target distributions, for statistics, and for temperatures that are predicted from scores. A pair that
    groups exclude has no term. A row without any other column (a batch of one) contributes zero, as in every loss here.

    Args:
        bias_init: where b starts. Most pairs are negatives; -10 makes the first loss small.
        backend: how scores that are products are computed, see `LogMeanExpLoss`; "cpu" computes as "torch" does.

    Raises:
        TypeError: bias_init is not a number.
        ValueError: bias_init is not finite; or there is no such backend.

    Example:
        >>> import torch, dro_temp as dt
        >>> rows = dt.Rows(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), target_in_support=False)
        >>> dt.SigmoidLoss(bias_init=0.0)(rows, 1.0)   # log(1 + e^-2) + log 2
        tensor([0.8201], grad_fn=<...>)

    Source: arXiv 2303.15343 (SigLIP), algorithm 1.
    """

    def __init__(self, bias_init: float = -10.0, *, backend: BackendOption = "auto") -> None:
        super().__init__(backend=backend)
        check_number("bias_init", bias_init, -10.0)
        self.bias: Tensor = nn.Parameter(torch.tensor([float(bias_init)]))  # [1]: FSDP shards no scalars

    @final
    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """Minus the log-likelihood of all pairs of a row."""
        scores, target, excluded = rows.dense_scores, rows.target.long()[:, None], rows.excluded
        if excluded is not None:  # no term: loss and slope are zero there
            scores = scores.masked_fill(excluded, IMPOSSIBLE)
        # (-inf) / tau would make the gradient of tau NaN: outcomes that cannot happen get a finite score. A target that
        # cannot happen keeps its infinite value.
        finite = scores.clamp(min=IMPOSSIBLE).scatter(1, target, scores.gather(1, target))
        logits = finite / tau[:, None] + self.bias
        if rows.target_distribution is not None:
            q = rows.target_distribution.to(logits.dtype)
            return nn.functional.binary_cross_entropy_with_logits(logits, q, reduction="none").sum(1)
        # The sign changes at the target alone: adding the difference afterwards would lose digits.
        signed = (-logits).scatter(1, target, logits.gather(1, target))
        return -nn.functional.logsigmoid(signed).sum(1)

    @outside_graphs
    def _streamed(
        self,
        rows: Rows,
        tau: Taus,
        statistics: Collection[Statistic],
        differentiable: bool,
        backend: BackendChoice,
    ) -> LossOutput:
        if statistics or isinstance(tau, TemperaturePredictor):
            what = "statistics are taken" if statistics else "temperatures are predicted"
            choice = BackendChoice("reference", f"{what} from the score matrix")
            return self._from_matrix(rows, tau, statistics, differentiable, choice)
        scores, target, safe = rows.scores, rows.target, tau
        assert isinstance(scores, LinearScores)
        queries, uncounted = scores.queries, None
        if rows.weight is not None or rows.group is not None:
            # Zeros are inert: the gradient of the keys would be 0 times NaN.
            uncounted = ~rows.valid
            queries = queries.masked_fill(uncounted[:, None], 0.0)
            target, safe = target.masked_fill(uncounted, 0), tau.masked_fill(uncounted, 1.0)
        transform = scores.transform
        assert transform is None or isinstance(transform, ScoreTransform)
        values, _ = sigmoid_losses(
            queries,
            scores.keys,
            target,
            (safe, self.bias),
            key_bias=scores.bias,
            transform=transform,
            exclusions=None
            if rows.group is None or rows.column_group is None
            else Exclusions(rows.group, rows.column_group, target),
            backend=streaming_backend(backend.name, queries.device, scores.dtype),
        )
        if uncounted is not None:
            values = values.masked_fill(uncounted, 0.0)
        return LossOutput(values, tau, backend)

    @final
    def evaluate_mirrored(
        self, other: RobustLoss, rows: tuple[Rows, Rows], taus: tuple[Taus, Taus]
    ) -> tuple[LossOutput, LossOutput] | None:
        """See `RobustLoss.evaluate_mirrored`."""
        if not isinstance(other, SigmoidLoss):
            return None
        backends = self._mirrored_backends(other, rows)
        if backends is None or any(isinstance(t, TemperaturePredictor) and t.reads_scores for t in taus):
            return None
        return self._from_tiles(other, rows, taus, backends)

    @outside_graphs
    def _from_tiles(
        self,
        other: "SigmoidLoss",
        rows: tuple[Rows, Rows],
        taus: tuple[Taus, Taus],
        backends: tuple[BackendChoice, BackendChoice],
    ) -> tuple[LossOutput, LossOutput]:
        first, second = rows[0].scores, rows[1].scores
        assert isinstance(first, LinearScores)
        assert isinstance(second, LinearScores)
        x, y, target = first.queries, second.queries, rows[0].target
        with torch.autocast(x.device.type, enabled=False):
            self.check_rows(rows[0])
            other.check_rows(rows[1])
            tau, tau_other = (
                tau if isinstance(tau, Tensor) else tau.predict(r) for tau, r in zip(taus, rows, strict=True)
            )
            backend = streaming_backend(backends[0].name, x.device, first.dtype)
            logits = (tau, self.bias), (tau_other, other.bias)
            grouped = rows[0].group is not None
            exclusions = (Exclusions.of(rows[0]), Exclusions.of(rows[1])) if grouped else None
            if first.local_keys is None:
                left_out = None if exclusions is None else exclusions[0]
                values, others = sigmoid_losses(x, y, target, *logits, exclusions=left_out, backend=backend)
                assert others is not None
            else:
                values, others = exchanged_sigmoid_losses(
                    (x, y),
                    (second.keys, first.keys),
                    target,
                    logits,
                    gather=lambda local: distributed.gather_rows(local)[0],
                    exclusions=exclusions,
                    backend=backend,
                )
            if grouped:  # some rows may have no outcomes
                values = values.masked_fill(~rows[0].valid, 0.0)
                others = others.masked_fill(~rows[1].valid, 0.0)
        return LossOutput(values, tau, backends[0]), LossOutput(others, tau_other, backends[1])
