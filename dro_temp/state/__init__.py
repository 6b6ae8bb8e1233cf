"""Memory between steps: forward proposes, an optimizer step commits.

`Staged` is memory that forward reads and a step writes; a `Transaction` records which forward proposed what, and
whether its loss was backpropagated; the optimizer commits a `Committable` (an `Objective`, a risk by itself).

On a device wrong values are noticed late, without a wait; inside `checks_now` where they are. `ReplayChecks` are those
of steps that were captured in a CUDA graph.
"""

from dro_temp._faults import ReplayChecks, checks_now
from dro_temp.state.staged import Staged, staged_modules
from dro_temp.state.transaction import Committable, Transaction

__all__ = ["Committable", "ReplayChecks", "Staged", "Transaction", "checks_now", "staged_modules"]
