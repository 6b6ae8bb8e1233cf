"""A loss that sees the keys of earlier batches beside those of this one."""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from dro_temp import distributed
from dro_temp._checks import check_kind
from dro_temp._typing import PerRow, RowIndex
from dro_temp.functional.kl import IMPOSSIBLE
from dro_temp.interfaces import Choice, Evaluated, LinearScores, RobustLoss, Rows, TemperaturePredictor
from dro_temp.kernels import Statistic
from dro_temp.losses.key_queue import NAMELESS, KeyQueue


class QueuedLoss(RobustLoss):
    r"""Another loss, over this batch's columns and the keys of the last `size` samples before it.

    A batch of pairs shows B - 1 of the N - 1 outcomes of a row. The temperature that is best for those few is
    not the one that is best for all: with radius rho the worst case rests on a share of about $e^{-\rho}$ of the
    outcomes, which in a batch may be ten. Keys change slowly, so those of earlier batches stand in for what this
    one lacks; they carry no gradient. Meant as the `tau_loss` of an `Objective`, where only temperatures learn
    from it: nothing that an encoder learns from is then out of date.

    Until the queue is full every value is zero: temperatures wait. After that the row's own sample, where it is still
    in the queue, is left out of the row's support by its number. Holds
    4 size (d + 2) bytes per view and, while a batch is evaluated, scores of B x (size + B).

    Args:
        loss: what is evaluated, for example `KLRobustLoss(rho)` with the radius of the main loss.
        size: number of keys that are kept, those of all processes together. A half of the data set is plenty.
        features: width d of the keys.

    Raises:
        TypeError: `loss` is none.
        ValueError: a size or a width below one; at a call, keys of another width.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> rows = host(torch.randn(5, 6), torch.randn(5, 5), index=torch.arange(5))["image"]
        >>> loss = dt.QueuedLoss(dt.KLRobustLoss(rho=1.0), size=6, features=4)
        >>> loss(rows, 0.1).shape, len(loss.queue)
        (torch.Size([5]), 0)
        >>> loss.queue.commit(); len(loss.queue)  # an optimizer step writes what the forward saw
        5

    Source: this library; queues of keys are those of arXiv 1911.05722 (MoCo) and 1912.06798 (XBM).
    """

    def __init__(self, loss: RobustLoss, *, size: int, features: int) -> None:
        super().__init__()
        check_kind("loss", loss, RobustLoss, "Pass KLRobustLoss(rho), with the radius of the main loss.")
        self.loss = loss
        self.queue = KeyQueue(size, features)

    def values(self, rows: Rows, tau: PerRow) -> PerRow:
        """Rows whose scores were given as a matrix have no keys that could be kept: the loss of those alone."""
        return self.loss.values(rows, tau)

    def choose(self, rows: Rows) -> Choice:
        """The queue joins where scores are products, and outcomes samples: a vocabulary lacks nothing."""
        if isinstance(rows.scores, LinearScores) and not rows.target_in_support:
            return Choice("chunked", "the keys of earlier batches join those of this one")
        return Choice("eager", "there are no keys of samples")

    def _streamed(
        self,
        rows: Rows,
        tau: Tensor | TemperaturePredictor,
        statistics: Collection[Statistic],
        choice: Choice,
    ) -> Evaluated:
        scores = rows.scores
        assert isinstance(scores, LinearScores)
        if scores.keys.shape[1] != self.queue.features:
            raise ValueError(
                f"expected keys of width {self.queue.features}, received {scores.keys.shape[1]}. Build "
                f"QueuedLoss(..., features={scores.keys.shape[1]}), the width of what the host embeds into."
            )
        if len(self.queue) < self.queue.size:
            found = self._waiting(rows, tau)
        else:
            found = self.loss.evaluate(self._with_queue(rows, scores), tau, statistics=statistics)
        if self.training and torch.is_grad_enabled():
            self.queue.stage(scores.keys, _numbers(rows, len(scores.keys)))
        return found

    def _waiting(self, rows: Rows, tau: Tensor | TemperaturePredictor) -> Evaluated:
        # Nothing is better than a batch's few outcomes, for which the radius may not even be feasible.
        tau = self._given(rows, tau)
        values = (0.0 * tau).masked_fill(~rows.valid, 0.0)
        return Evaluated(values, tau, Choice("eager", "the queue is not full yet"))

    def _with_queue(self, rows: Rows, scores: LinearScores) -> Rows:
        held = self.queue.size
        keys = torch.cat([self.queue.keys.to(scores.keys), scores.keys])
        bias = None if scores.bias is None else torch.cat([scores.bias.new_zeros(held), scores.bias])
        dense = replace(scores, keys=keys, bias=bias, local_keys=None).dense()
        if rows.index is not None:
            own = nn.functional.pad(self.queue.number == rows.index[:, None], (0, len(scores.keys)))
            # Still an outcome, of probability zero: one of `size`, which moves log m by 1 / size.
            dense = dense.masked_fill(own, IMPOSSIBLE)
        return replace(rows, scores=dense, target=rows.target + held)


def _numbers(rows: Rows, columns: int) -> RowIndex:
    """Whose key each column is, of all processes."""
    nameless = rows.target.new_full((columns,), NAMELESS, dtype=torch.long)
    if rows.index is None:
        return nameless
    targets, _ = distributed.gather_rows(rows.target.long())
    index, _ = distributed.gather_rows(rows.index.long())
    return nameless.scatter(0, targets, index)
