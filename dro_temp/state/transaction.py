"""Which forwards proposed what, and which of them were backpropagated."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from dro_temp.state.staged import Staged

#: Number of forwards, and of proposals of each memory.
Savepoint: TypeAlias = tuple[int, dict[Staged, int]]


class _Forward:
    """What one forward proposed, and whether its loss was backpropagated."""

    def __init__(self, proposals: dict[Staged, int], *, compiled: bool) -> None:
        self.proposals = proposals
        self.compiled = compiled  # then there are no hooks, and a step means that it was backpropagated
        self.reached = compiled
        self.accumulated = compiled  #: False where `autograd.grad` returned the gradients instead
        self.hook: ref[_Reached] | None = None

    @property
    def is_alive(self) -> bool:
        """True while its graph is there."""
        return self.hook is not None and self.hook() is not None

    @property
    def may_count(self) -> bool:
        """True unless it was not backpropagated and cannot be any more, its graph being gone."""
        return self.reached or self.is_alive


class _Reached:
    """Hook on the rows' values; the graph alone keeps it alive."""

    def __init__(self, transaction: "Transaction", forward: _Forward) -> None:
        self._transaction, self._forward = transaction, forward

    def __call__(self, gradient: Tensor) -> None:
        self._forward.reached = True
        self._transaction.note_backward(self._forward)


class Transaction:
    """Keeps proposals alive for as long as the gradients that go with them.

    A forward that is never backpropagated, or whose gradients are cleared without a step, leaves no trace.

    Args:
        parts: modules that may hold staged memory.

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
        self._parts = parts
        self._forwards: list[_Forward] = []
        #: Which parameters there are; a sharded model has others in forward than outside of it.
        self._parameters: Callable[[], Iterable[Tensor]] = tuple
        self._versions: list[tuple[Tensor, int]] = []
        #: Those that had a gradient after the last backward, and their versions then.
        self._with_gradient: list[tuple[Tensor, int]] = []
        #: During a backward, the gradients as they were when it began, and the forwards that it has reached.
        self._gradients: dict[int, tuple[Tensor | None, int]] | None = None
        self._running: list[_Forward] = []
        #: The gradients before the first `autograd.grad` of forwards that are still to be committed.
        self._untouched: dict[int, tuple[ref[Tensor] | None, int]] | None = None
        self._committed: dict[int, tuple[ref[Tensor], int]] = {}

    def memory(self) -> list[Staged]:
        """All staged memory of the parts."""
        return [m for part in self._parts for m in part.modules() if isinstance(m, Staged)]

    @contextmanager
    def recording(self) -> Iterator[Savepoint]:
        """Around a forward: if it fails, nothing half-proposed stays behind.

        Only that forward's proposals go: activation checkpointing ends its recomputation by an exception, too.
        """
        savepoint = self.savepoint()
        try:
            yield savepoint
        except BaseException:
            self.rollback(savepoint)
            raise

    @property
    def watches(self) -> bool:
        """True if there are parameters that can tell of a step."""
        return bool(self._versions)

    @property
    def backpropagated(self) -> bool:
        """True if something that was proposed belongs to a gradient."""
        recorded = {staged for forward in self._forwards for staged, n in forward.proposals.items() if n}
        in_backward = any(staged.pending and staged not in recorded for staged in self.memory())
        return in_backward or any(forward.reached for forward in self._forwards)

    def enter(
        self, before: Savepoint, values: Iterable[Tensor], parameters: Callable[[], Iterable[Tensor]]
    ) -> None:
        """Note what was proposed since the savepoint, and hook its backward.

        Args:
            before: the savepoint.
            values: what backward goes through.
            parameters: those that a step may change.
        """
        proposals = {staged: len(staged.staged) - keep for staged, keep in before[1].items()}
        if not any(proposals.values()):
            return
        compiling = torch.compiler.is_compiling()
        forward = _Forward(proposals, compiled=compiling)
        if compiling:  # hooks would break the graph
            self._forwards.append(forward)
            return
        # Forwards that nothing can backpropagate any more leave before they fill the memory.
        self._keep(lambda earlier: earlier.may_count)
        self._forwards.append(forward)
        hook = _Reached(self, forward)
        forward.hook = ref(hook)
        for x in values:
            if x.requires_grad:
                x.register_hook(hook)  # type: ignore[no-untyped-call]
        self._parameters = parameters
        self._gradients, self._running = None, []  # of a backward that an error ended
        self._versions = [(p, p._version) for p in parameters() if p.requires_grad]

    def note_backward(self, forward: _Forward) -> None:
        """From a hook in backward: see at its end which parameters have gradients, and whether it has changed them.

        `autograd.grad` changes none. A sharded model has the parameters that it steps only outside of its backward.
        """
        self._running.append(forward)
        if self._gradients is None:
            self._gradients = {id(p): _grad_of(p) for p, _ in self._versions}
            Variable._execution_engine.queue_callback(self._end_backward)  # type: ignore[attr-defined]

    def _end_backward(self) -> None:
        before, self._gradients = self._gradients or {}, None
        reached, self._running = self._running, []
        with_gradient = [p for p, _ in self._versions if p.grad is not None]
        # To walk through all modules takes as long as many small layers: only where the parameters are others by now.
        with_gradient = with_gradient or [p for p in self._parameters() if p.grad is not None]
        if any(_differ(_grad_of(p), before.get(id(p), (None, 0))) for p in with_gradient):
            for forward in reached:
                forward.accumulated = True
            # Beside gradients that are accumulated, those of `autograd.grad` were looked at, and not stepped with.
            self._keep(lambda forward: forward.accumulated or forward.is_alive or not forward.reached)
        elif self._untouched is None:
            self._untouched = {
                key: (None if grad is None else ref(grad), version) for key, (grad, version) in before.items()
            }
        self._with_gradient = [(p, p._version) for p in with_gradient]

    def commit(self, parameters: Iterable[Tensor]) -> None:
        """Write the proposals of backpropagated forwards, forget the others."""
        if any(forward.compiled for forward in self._forwards):
            self._committed = {
                id(p): (ref(p.grad), p.grad._version) for p in parameters if p.grad is not None
            }
        # Either backward has accumulated the step's gradients, or they were set from what `autograd.grad` returned.
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
        """How much was proposed so far, for `rollback`."""
        return len(self._forwards), {staged: len(staged.staged) for staged in self.memory()}

    def rollback(self, savepoint: Savepoint) -> None:
        """Forget what was proposed since the savepoint."""
        forwards, lengths = savepoint
        del self._forwards[forwards:]
        for staged, length in lengths.items():
            staged.discard(length)

    def discard(self) -> None:
        """Forget everything."""
        for staged in self.memory():
            staged.discard()
        self._clear()

    def discard_backpropagated(self, parameters: Iterable[Tensor]) -> None:
        """Forget the proposals of forwards whose gradients were accumulated, and those that were made in backward.

        Of compiled forwards the gradients tell, which are still to be cleared: `zero_grad` may stand before backward.
        What `autograd.grad` returned is not cleared, since a loop of one's own may be about to set it; unless gradients
        have been set since, which are being cleared now.
        """
        untouched, self._untouched = self._untouched, None
        by_hand = untouched is not None and any(_is_set(p, untouched) for p, _ in self._versions)
        recorded = {staged for forward in self._forwards for staged, n in forward.proposals.items() if n}
        waits = any(forward.compiled for forward in self._forwards) and self._nothing_came(parameters)
        self._keep(
            lambda forward: (
                not (forward.accumulated or (forward.reached and by_hand)) or (forward.compiled and waits)
            )
        )
        if untouched is not None and any(forward.reached for forward in self._forwards):
            self._untouched = {}  # from here on there are no gradients
        for staged in self.memory():
            if staged not in recorded:
                staged.discard()

    def _nothing_came(self, parameters: Iterable[Tensor]) -> bool:
        """Whether all gradients are as they were at the last commit."""
        trained = [p for p in parameters if p.requires_grad]
        for p in trained:
            held, version = self._committed.get(id(p), (None, 0))
            if p.grad is not None and (held is None or held() is not p.grad or version != p.grad._version):
                return False
        return bool(trained)

    def refuse_uncommitted(self) -> None:
        """Raise where parameters moved, or gradients were cleared, past proposals that were not committed."""
        if not any(forward.reached for forward in self._forwards):
            return
        # In-place steps raise a version; fused ones do not, but then gradients that were there have been cleared.
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

    def _keep(self, wanted: Callable[[_Forward], bool]) -> None:
        if all(map(wanted, self._forwards)):
            return
        for staged in self.memory():
            kept: list[tuple[Tensor, ...]] = []
            start = 0
            for forward in self._forwards:
                end = start + forward.proposals.get(staged, 0)
                kept += staged.staged[start:end] if wanted(forward) else []
                start = end
            staged.staged[:] = kept + staged.staged[start:]
        self._forwards = [forward for forward in self._forwards if wanted(forward)]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start empty."""
        fresh = Transaction()
        return {**fresh.__dict__, "_parts": self._parts}


def _grad_of(p: Tensor) -> tuple[Tensor | None, int]:
    return p.grad, 0 if p.grad is None else p.grad._version


def _differ(first: tuple[Tensor | None, int], second: tuple[Tensor | None, int]) -> bool:
    return first[0] is not second[0] or first[1] != second[1]


def _is_set(p: Tensor, untouched: dict[int, tuple[ref[Tensor] | None, int]]) -> bool:
    """Whether the parameter has another gradient than it had."""
    before, version = untouched.get(id(p), (None, 0))
    return p.grad is not None and (before is None or before() is not p.grad or version != p.grad._version)


def some_leaves(x: Tensor, most: int = 8) -> list[Tensor]:
    """Some of the parameters that a tensor was computed from, the nearest first: enough to see a step."""
    found: list[Tensor] = []
    nodes, seen = [x.grad_fn], set()
    while nodes and len(found) < most:
        node = nodes.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [following for following, _ in node.next_functions]
    return found
