"""A contrastive loss with several positives per row: those of its group."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from dro_temp import functional as F
from dro_temp._autograd import outside_graphs
from dro_temp._checks import values_can_be_read
from dro_temp._tensors import work_dtype
from dro_temp._typing import PerRow
from dro_temp.functional.groups import comparable_groups
from dro_temp.functional.statistics import NOT_AN_OUTCOME, Statistic
from dro_temp.interfaces import (
    BackendChoice,
    LinearScores,
    LossOutput,
    RobustLoss,
    Rows,
    TemperaturePredictor,
)
from dro_temp.kernels.dispatch import BackendOption
from dro_temp.losses.likelihood import InfoNCELoss
from dro_temp.losses.log_mean_exp import StreamingLoss, Taus


class SupervisedContrastiveLoss(StreamingLoss):
    r"""$-\frac{1}{|P_i|} \sum_{p \in P_i} \log \mathrm{softmax}(s_i / \tau_i)_p$, the mean over the row's positives.

    The positives of a row are its target and the columns of its group (`Rows.group`); the softmax is over all columns,
    positives included, but for those that are left out (`functional.LEFT_OUT`). Without groups, or where each row is
    alone in its own, it is `InfoNCELoss`. With `hosts.TwoViews` and class numbers as groups it is SupCon. A positive
    that cannot happen (a score of -inf) is none. A row without negatives contributes zero, as in every loss here.

    The value is $\log \sum_j e^{s_{ij}/\tau_i} - \bar s_i / \tau_i$ with $\bar s_i$ the mean score of the positives.
    Where scores are products, the sum streams, and the mean is that of the query with the mean of its group's keys: no
    score matrix. Statistics, temperatures that are predicted from scores, and transformed scores need the matrix.

    Args:
        backend: how scores that are products are computed, see `LogMeanExpLoss`.

    Example:
        >>> import torch, dro_temp as dt
        >>> group = torch.tensor([5, 5, 6])
        >>> rows = dt.Rows(torch.eye(3), torch.arange(3), target_in_support=False, group=group, column_group=group)
        >>> dt.SupervisedContrastiveLoss()(rows, 1.0)[0], -torch.eye(3)[0].log_softmax(0)[:2].mean()
        (tensor(1.0514), tensor(1.0514))

    Source: arXiv 2004.11362 (SupCon), equation 2.
    """

    def __init__(self, *, backend: BackendOption = "auto") -> None:
        super().__init__(backend=backend)
        self._of_targets = (InfoNCELoss(backend=backend),)  # a tuple: it is no part with parameters or a name

    @property
    def _likelihood(self) -> InfoNCELoss:
        (loss,) = self._of_targets
        if loss.backend != self.backend:  # which may be set later
            loss.backend = self.backend
        return loss

    @final
    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """From the score matrix."""
        values = self._likelihood.values(_without_positives(rows), tau)
        excluded = rows.excluded
        if rows.group is None or excluded is None:
            return values
        margins = rows.margins
        positive = excluded & (rows.group >= 0)[:, None] & (margins > NOT_AN_OUTCOME / 2)
        assert rows.column_group is not None
        positive &= rows.column_group != F.LEFT_OUT
        # The target's margin is zero.
        return values - margins.masked_fill(~positive, 0.0).sum(1) / (1 + positive.sum(1)) / tau

    @outside_graphs
    def _streamed(
        self,
        rows: Rows,
        tau: Taus,
        statistics: Collection[Statistic],
        differentiable: bool,
        backend: BackendChoice,
    ) -> LossOutput:
        scores = rows.scores
        assert isinstance(scores, LinearScores)
        for what, needs in (
            ("statistics are taken", bool(statistics)),
            ("temperatures are predicted", isinstance(tau, TemperaturePredictor)),
            ("positives of transformed scores are averaged", scores.transform is not None),
        ):
            if needs:
                choice = BackendChoice("reference", f"{what} from the score matrix")
                return self._from_matrix(rows, tau, statistics, differentiable, choice)
        if rows.group is None:
            return self._likelihood._streamed(rows, tau, statistics, differentiable, backend)
        output = self._likelihood._streamed(_without_positives(rows), tau, (), False, backend)
        return _of_positives(rows, output)

    @final
    def evaluate_mirrored(
        self, other: RobustLoss, rows: tuple[Rows, Rows], taus: tuple[Taus, Taus]
    ) -> tuple[LossOutput, LossOutput] | None:
        """See `RobustLoss.evaluate_mirrored`."""
        if not isinstance(other, SupervisedContrastiveLoss):
            return None
        if any(isinstance(t, TemperaturePredictor) and t.reads_scores for t in taus):
            return None
        # By both views alike: the columns' groups are those of all processes, which must all make the same choice.
        left_out = any(_may_leave_out(r) for r in rows)
        first, second = (_without_positives(r, left_out=left_out) for r in rows)
        if first.group is not None and second.group is not None and rows[0].has_mirrored_groups(rows[1]):
            scores = first.scores
            assert isinstance(scores, LinearScores)
            if scores.local_keys is None:  # as one matrix read by rows and by columns
                second = replace(second, group=first.column_group, column_group=first.group)
        outputs = self._likelihood.evaluate_mirrored(other._likelihood, (first, second), taus)
        if outputs is None:
            return None
        return _of_positives(rows[0], outputs[0]), _of_positives(rows[1], outputs[1])


def _may_leave_out(rows: Rows) -> bool:
    """Whether rows or columns are left out; True where groups cannot be read."""
    groups = [x for x in (rows.group, rows.column_group) if x is not None]
    return bool(groups) and not (
        values_can_be_read(*groups) and not any(bool((x == F.LEFT_OUT).any()) for x in groups)
    )


def _without_positives(rows: Rows, *, left_out: bool | None = None) -> Rows:
    """The rows with every column in their support that is not left out; `left_out` says whether any may be."""
    if rows.group is None or rows.column_group is None:
        return rows
    if not (_may_leave_out(rows) if left_out is None else left_out):
        return replace(rows, group=None, column_group=None)
    sides = {"group": rows.group, "column_group": rows.column_group}
    groups: dict[str, Any] = {
        name: torch.where(x == F.LEFT_OUT, F.LEFT_OUT, F.UNGROUPED) for name, x in sides.items()
    }
    return replace(rows, **groups)


def _of_positives(rows: Rows, output: LossOutput) -> LossOutput:
    """The output of the target alone, less the mean margin of the positives over tau."""
    if rows.group is None:
        return output
    valid = rows.valid
    tau = output.tau.masked_fill(~valid, 1.0)
    margin = _mean_margin(rows.inert_products())
    values = (output.values - margin / tau.to(margin.dtype)).masked_fill(~valid, 0.0)
    return replace(output, values=values, mean=None)


def _mean_margin(rows: Rows) -> PerRow:
    """Mean margin of each row's positives, from the mean of their keys: never a matrix."""
    scores = rows.scores
    assert isinstance(scores, LinearScores)
    assert rows.group is not None
    assert rows.column_group is not None
    dtype, target, m = work_dtype(scores.queries, scores.keys), rows.target.long(), scores.shape[1]
    group, column_group = comparable_groups(rows.group, rows.column_group)
    if scores.bias is not None:
        # A column that cannot happen is nobody's positive.
        impossible = scores.bias.detach() <= NOT_AN_OUTCOME / 2
        scores = replace(scores, bias=scores.bias.masked_fill(impossible, 0.0))
        column_group = column_group.masked_fill(impossible, F.LEFT_OUT)
    ordered = column_group.sort().values
    # Columns of one group add up at the place of its first member.
    of_columns = torch.searchsorted(ordered, column_group)
    of_rows = torch.searchsorted(ordered, group).clamp(max=m - 1)
    is_there = (ordered[of_rows] == group) & (group >= 0)
    has_target = is_there & (column_group[target] == group)
    number = torch.zeros_like(of_columns).index_add(0, of_columns, torch.ones_like(of_columns))
    count = number[of_rows].masked_fill(~is_there, 0) + (~has_target).long()  # the target, and its group

    def mean_less_target(x: Tensor) -> Tensor:
        """Of numbers or vectors of the columns, as one for each row."""
        per_row = (-1, *[1] * (x.dim() - 1))
        own, total = x[target], torch.zeros_like(x).index_add(0, of_columns, x)[of_rows]
        total = total.masked_fill(~is_there.view(per_row), 0.0)
        total = total + own.masked_fill(has_target.view(per_row), 0.0)
        return total / count.view(per_row) - own

    with torch.autocast(target.device.type, enabled=False):
        margin = (scores.queries.to(dtype) * mean_less_target(scores.keys.to(dtype))).sum(1)
        return margin if scores.bias is None else margin + mean_less_target(scores.bias.to(dtype))
