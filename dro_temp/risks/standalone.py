"""Risks that can be minimised by themselves."""

import torch
from torch import Tensor

from dro_temp import _faults
from dro_temp._typing import PerRow, Scalar
from dro_temp.interfaces import SampleRisk
from dro_temp.state import Committable, Transaction
from dro_temp.state.transaction import some_leaves


class StandaloneRisk(SampleRisk, Committable):
    """A risk in an `Objective`, or by itself over the losses of any model.

    It may remember (an estimator, weights of groups): by itself it records what each forward proposes, for
    `CompositionalOptimizer(optimizer, risk)` or `risk.commit()` to write once a step was taken.

    Example:
        >>> import torch, dro_temp as dt
        >>> risk = dt.TiltedRisk(1.0, estimator=dt.LogMovingAverage(1))
        >>> risk(torch.zeros(4, requires_grad=True)).backward()
        >>> risk.commit()
        >>> risk.estimator.log_u
        tensor([0.])
    """

    trains_others = True

    def __init__(self) -> None:
        super().__init__()
        self._transaction = Transaction(self)

    def forward(
        self,
        losses: Tensor,
        *,
        weight: Tensor | None = None,
        group: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Scalar:
        """See `SampleRisk.forward`."""
        if _faults.pending.checks:
            _faults.raise_faults()
        if not self.memory_modules():
            return super().forward(losses, weight=weight, group=group, index=index)
        if self.training and torch.is_grad_enabled():
            self._transaction.refuse_uncommitted()
        with self._transaction.recording() as before:
            risk = super().forward(losses, weight=weight, group=group, index=index)
        leaves = [] if torch.compiler.is_compiling() else some_leaves(losses)
        self._transaction.enter(before, (risk,), lambda: (*self.parameters(), *leaves))
        return risk

    def extra_repr(self) -> str:
        """The numbers that it was made with."""
        return ", ".join(f"{name}={x}" for name, x in vars(self).items() if isinstance(x, float))

    def weights(
        self,
        losses: Tensor,
        *,
        weight: Tensor | None = None,
        group: Tensor | None = None,
        index: Tensor | None = None,
    ) -> PerRow:
        """See `SampleRisk.weights`."""
        savepoint = self._transaction.savepoint()
        try:
            return super().weights(losses, weight=weight, group=group, index=index)
        finally:
            self._transaction.rollback(savepoint)
