"""Objects that an optimizer step commits."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from dro_temp._loading import ShapeChecked
from dro_temp.state.staged import Staged
from dro_temp.state.transaction import Transaction


class Committable(ShapeChecked):
    """A number to minimise with memory that an optimizer step writes: an `Objective`, or a `SampleRisk` by itself.

    `CompositionalOptimizer` calls these methods. In a loop without it, call `commit()` after a step that was taken and
    `discard()` after one that was skipped.

    Example:
        >>> import torch, dro_temp as dt
        >>> risk = dt.TiltedRisk(1.0, estimator=dt.LogMovingAverage(1))
        >>> risk(torch.zeros(4, requires_grad=True)).backward()
        >>> risk.pending, risk.estimator.log_u
        (True, tensor([-inf]))
        >>> risk.commit()
        >>> risk.pending, risk.estimator.log_u
        (False, tensor([0.]))
    """

    #: True if the trained parameters may be elsewhere: a risk takes losses, and does not contain the model.
    trains_others: ClassVar[bool] = False

    _transaction: Transaction

    def memory_modules(self) -> list[Staged]:
        """The parts with memory of samples; hosts, which may be large, have none."""
        return self._transaction.memory()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As `torch.nn.Module.load_state_dict`.

        Raises:
            TypeError: the state is not a mapping.
            RuntimeError: the state does not fit.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise RuntimeError(
                f"expected the state of this {type(self).__name__}, received one that does not fit. Load what "
                f"state_dict() returned for the same parts; strict=False lets keys be missing. In detail:\n{error}"
            ) from error

    @property
    def pending(self) -> bool:
        """True while a forward's proposals were neither committed nor discarded."""
        return any(staged.pending for staged in self.memory_modules())

    @property
    def backpropagated(self) -> bool:
        """True while there are proposals that belong to a gradient."""
        return self._transaction.backpropagated

    def commit(self) -> None:
        """Write the proposals of forwards whose loss was backpropagated; drop the others.

        `CompositionalOptimizer` calls it after each step.
        """
        self._transaction.commit(self.parameters())

    def discard(self) -> None:
        """Drop all proposals."""
        self._transaction.discard()

    def discard_backpropagated(self) -> None:
        """Drop the proposals of gradients that are being cleared without a step.

        A gradient scaler skips a step silently; clearing the gradients reveals it. Forwards that are still to be
        backpropagated keep their proposals.
        """
        self._transaction.discard_backpropagated(self.parameters())

    def proposing_once(self, closure: Callable[[], float]) -> Callable[[], float]:
        """A closure that may be evaluated several times in one step, of which the last evaluation counts."""
        # Proposals of earlier parts of an accumulation window stay.
        savepoint = self._transaction.savepoint()

        def evaluate() -> float:
            self._transaction.rollback(savepoint)
            return closure()

        return evaluate
