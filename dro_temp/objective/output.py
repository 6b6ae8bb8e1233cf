"""The output of an objective."""

from dataclasses import dataclass, field

from dro_temp._pytree import one_line, pytree
from dro_temp._typing import PerRow, Scalar
from dro_temp.interfaces import BackendChoice


@pytree(static=("backend",))
@dataclass(frozen=True)
class ObjectiveOutput:
    """The output of an `Objective`.

    Args:
        loss: the number to call `backward` on: the mean over views of each view's weighted mean over rows, plus
            penalties and a `tau_loss`.
        values: loss of each row, per view.
        tau: temperature of each row, per view, detached.
        metrics: numbers to log, `"loss"`, `"{view}/loss"`, `"{view}/tau_mean"` and so on: detached
            scalars on the device, so that logging waits for it only when they are read.
        backend: the backend that computed each view's scores, and why.
        tau_values: with a `tau_loss`, its value of each row, per view; else empty.
    """

    loss: Scalar
    values: dict[str, PerRow]
    tau: dict[str, PerRow]
    metrics: dict[str, Scalar]
    backend: dict[str, BackendChoice] = field(default_factory=dict)
    tau_values: dict[str, PerRow] = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(self)
