"""Which forward proposed what, which of them were backpropagated, and what an optimizer step commits."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from dro_temp import _faults
from dro_temp._loading import ShapeChecked
from dro_temp._module_tree import ModuleTree
from dro_temp.state.staged import Staged

#: Number of forwards, and of proposals of each memory.
Savepoint: TypeAlias = tuple[int, dict[Staged, int]]
#: Gradients by their parameter's id, and their versions; one that is gone was replaced or cleared.
Gradients: TypeAlias = Mapping[int, tuple[ref[Tensor], int]]


@dataclass(eq=False)
class _Forward:
    """The proposals of one forward, and what became of its loss."""

    proposals: list[tuple[Tensor, ...]]
    compiled: bool  #: no hooks then: a step means that it was backpropagated
    reached: bool = False  #: by a backward
    accumulated: bool = False  #: False where `autograd.grad` returned the gradients instead
    hook: "ref[Callable[[Tensor], None]] | None" = None  #: on its values; only the graph keeps it alive

    @property
    def is_alive(self) -> bool:
        """True while its graph exists."""
        return self.hook is not None and self.hook() is not None


class Transaction:
    """Keeps proposals for as long as the gradients that belong to them.

    A forward that is never backpropagated, or whose gradients are cleared without a step, changes nothing.

    Args:
        parts: modules that may have staged memory.

    Example:
        >>> import torch, dro_temp as dt
        >>> estimator, x = dt.LogMovingAverage(4), torch.zeros(1, requires_grad=True)
        >>> transaction = Transaction(estimator)
        >>> with transaction.recording() as savepoint:  # around a forward
        ...     value = estimator.propose(torch.tensor([2]), x, torch.tensor([True])) + x
        >>> transaction.enter(savepoint, (value,), lambda: (x,))
        >>> value.sum().backward()
        >>> transaction.commit((x,))  # after a step
        >>> estimator.log_u
        tensor([-inf, -inf, 0., -inf])
    """

    def __init__(self, *parts: nn.Module) -> None:
        #: All staged memory of the parts.
        self.memory: Callable[[], list[Staged]] = ModuleTree(*parts, kind=Staged).modules
        self._forwards: list[_Forward] = []
        #: The current parameters; a sharded model has others in forward than outside it.
        self._parameters: Callable[[], Iterable[Tensor]] = tuple
        self._versions: list[tuple[Tensor, int]] = []
        #: Parameters with a gradient after the last backward, and their versions then.
        self._with_gradient: list[tuple[Tensor, int]] = []
        #: During a backward, the gradients before it, and the forwards that it has reached.
        self._gradients: Gradients | None = None
        self._running: list[_Forward] = []
        #: The gradients before the first `autograd.grad` of uncommitted forwards.
        self._untouched: Gradients | None = None
        self._committed: Gradients = {}

    @contextmanager
    def recording(self) -> Iterator[Savepoint]:
        """Around a forward: if it fails, its proposals are dropped.

        Earlier ones stay: activation checkpointing ends its recomputation by an exception, too.
        """
        savepoint = self.savepoint()
        try:
            yield savepoint
        except BaseException:
            self.rollback(savepoint)
            raise

    @property
    def backpropagated(self) -> bool:
        """True if a proposal belongs to a gradient."""
        in_backward = any(staged.pending for staged in self._unrecorded())
        return in_backward or any(forward.reached for forward in self._forwards)

    def _unrecorded(self) -> list[Staged]:
        """The memory of which no forward recorded a proposal: what it has, it got in backward."""
        recorded = {id(proposal) for forward in self._forwards for proposal in forward.proposals}
        return [m for m in self.memory() if recorded.isdisjoint(map(id, m.staged))]

    def enter(
        self, before: Savepoint, values: Iterable[Tensor], parameters: Callable[[], Iterable[Tensor]]
    ) -> None:
        """Record the proposals since the savepoint, and hook their backward.

        Args:
            before: the savepoint.
            values: tensors that backward passes through.
            parameters: the parameters that a step may change.
        """
        proposals = [proposal for staged, keep in before[1].items() for proposal in staged.staged[keep:]]
        if not proposals:
            return
        compiling = torch.compiler.is_compiling()
        forward = _Forward(proposals, compiling, reached=compiling, accumulated=compiling)
        if compiling:  # hooks would break the graph
            self._forwards.append(forward)
            return
        # Drop forwards that can no longer be backpropagated, before they fill the memory.
        if self._forwards:
            self._keep(lambda earlier: earlier.reached or earlier.is_alive)
        self._forwards.append(forward)

        def hook(gradient: Tensor) -> None:
            self._start_backward(forward)

        forward.hook = ref(hook)
        for x in values:
            if x.requires_grad:
                x.register_hook(hook)  # type: ignore[no-untyped-call]
        self._parameters = parameters
        self._gradients, self._running = None, []  # left by a backward that failed
        self._versions = [(p, p._version) for p in parameters() if p.requires_grad]

    def _start_backward(self, forward: _Forward) -> None:
        """Check at the end of this backward which gradients it has changed.

        `autograd.grad` changes none. A sharded model has the parameters that it steps only outside its backward.
        """
        forward.reached = True
        self._running.append(forward)
        if self._gradients is None:
            self._gradients = _gradients_of(p for p, _ in self._versions)
            Variable._execution_engine.queue_callback(self._end_backward)  # type: ignore[attr-defined]

    def _end_backward(self) -> None:
        before, self._gradients = self._gradients or {}, None
        reached, self._running = self._running, []
        with_gradient = [p for p, _ in self._versions if p.grad is not None]
        # Iterating over all modules takes as long as many small layers: only if the parameters have been replaced.
        with_gradient = with_gradient or [p for p in self._parameters() if p.grad is not None]
        if any(_is_set(p, before) for p in with_gradient):
            for forward in reached:
                forward.accumulated = True
            # Since gradients are accumulated, those that `autograd.grad` returned are not stepped with.
            self._keep(lambda forward: forward.accumulated or forward.is_alive or not forward.reached)
        elif self._untouched is None:
            self._untouched = before
        self._with_gradient = [(p, p._version) for p in with_gradient]

    def commit(self, parameters: Iterable[Tensor]) -> None:
        """Write the proposals of backpropagated forwards, drop the others."""
        if any(forward.compiled for forward in self._forwards):
            self._committed = _gradients_of(parameters)
        # Either backward has accumulated the step's gradients, or they were set from the result of `autograd.grad`.
        accumulated = any(forward.accumulated for forward in self._forwards)
        self._keep(lambda forward: forward.accumulated if accumulated else forward.reached)
        for staged in self.memory():
            staged.commit()
        self._clear()

    def _clear(self) -> None:
        self._forwards.clear()
        self._with_gradient.clear()
        self._untouched = None

    def savepoint(self) -> Savepoint:
        """The number of proposals so far, for `rollback`."""
        return len(self._forwards), {staged: len(staged.staged) for staged in self.memory()}

    def rollback(self, savepoint: Savepoint) -> None:
        """Drop the proposals since the savepoint."""
        forwards, lengths = savepoint
        del self._forwards[forwards:]
        for staged, length in lengths.items():
            staged.discard(length)

    def discard(self) -> None:
        """Drop all proposals."""
        for staged in self.memory():
            staged.discard()
        self._clear()

    def discard_backpropagated(self, parameters: Iterable[Tensor]) -> None:
        """Drop the proposals of forwards whose gradients were accumulated, and those made in backward.

        For compiled forwards the gradients decide, which are not cleared yet: `zero_grad` may be called before
        backward. Proposals that belong to the result of `autograd.grad` stay, since a custom loop may be about to set
        it; unless gradients have been set since, which are being cleared now.
        """
        untouched, self._untouched = self._untouched, None
        by_hand = untouched is not None and any(_is_set(p, untouched) for p, _ in self._versions)
        unrecorded = self._unrecorded()
        compiled = any(forward.compiled for forward in self._forwards)
        trained = [p for p in parameters if p.requires_grad] if compiled else []
        waits = bool(trained) and not any(_is_set(p, self._committed) for p in trained)

        def counts(forward: _Forward) -> bool:
            cleared = forward.accumulated or (forward.reached and by_hand)
            return not cleared or (forward.compiled and waits)

        self._keep(counts)
        if untouched is not None and any(forward.reached for forward in self._forwards):
            self._untouched = {}  # from here on there are no gradients
        for staged in unrecorded:
            staged.discard()

    def refuse_uncommitted(self) -> None:
        """Raise if parameters changed, or gradients were cleared, while proposals are uncommitted."""
        if not any(forward.reached for forward in self._forwards):
            return
        # In-place steps raise a version; fused ones do not, but are followed by clearing the gradients.
        stepped = any(p._version != version for p, version in (*self._versions, *self._with_gradient))
        cleared = bool(self._with_gradient) and all(p.grad is None for p, _ in self._with_gradient)
        if stepped or cleared:
            self.discard()
            raise RuntimeError(
                "expected the estimator's proposals to be committed by the optimizer step that followed them, "
                "received a parameter update (or cleared gradients) without a commit. Step with "
                "dro_temp.CompositionalOptimizer(optimizer, objective), or call objective.commit() after each "
                "optimizer.step(); a risk by itself stands in the objective's place."
            )

    def _keep(self, condition: Callable[[_Forward], bool]) -> None:
        dropped = {
            id(proposal)
            for forward in self._forwards
            if not condition(forward)
            for proposal in forward.proposals
        }
        if dropped:
            for staged in self.memory():
                staged.staged[:] = [proposal for proposal in staged.staged if id(proposal) not in dropped]
            self._forwards = list(filter(condition, self._forwards))

    def __getstate__(self) -> dict[str, Any]:
        return {**Transaction().__dict__, "memory": self.memory}  # without proposals


class Committable(ShapeChecked):
    """A number to minimise with memory that an optimizer step writes: an `Objective`, or a `StandaloneRisk` alone.

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
        # After it: what was stepped and what was written belong together.
        if _faults.pending.checks:
            _faults.raise_faults()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `torch.nn.Module.state_dict`; faults on a device are raised first, so that none is saved unnoticed."""
        if _faults.pending.checks:
            _faults.raise_faults(wait=True)
        return super().state_dict(*args, **kwargs)

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


def _gradients_of(parameters: Iterable[Tensor]) -> Gradients:
    return {id(p): (ref(p.grad), p.grad._version) for p in parameters if p.grad is not None}


def _is_set(p: Tensor, earlier: Gradients) -> bool:
    """Whether the parameter has another gradient than earlier."""
    if p.grad is None or id(p) not in earlier:
        return p.grad is not None
    before, version = earlier[id(p)]
    return before() is not p.grad or version != p.grad._version


def some_leaves(x: Tensor, most: int = 8) -> list[Tensor]:
    """Some of the parameters that a tensor depends on, nearest first: enough to detect a step."""
    leaves: list[Tensor] = []
    nodes, seen = [x.grad_fn], set()
    while nodes and len(leaves) < most:
        node = nodes.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        nodes += [following for following, _ in node.next_functions]
    return leaves
