"""Memory between steps: forward proposes, an optimizer step commits.

`Staged` is memory that forward reads and a step writes; a `Transaction` records which forward proposed what, and
whether its loss was backpropagated; the optimizer commits a `Committable` (an `Objective`, a risk by itself).
"""

from dro_temp.state.staged import Staged, staged_modules
from dro_temp.state.transaction import Committable, Transaction

__all__ = ["Committable", "Staged", "Transaction", "staged_modules"]
