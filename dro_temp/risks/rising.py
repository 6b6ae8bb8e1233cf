"""A radius that rises over training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dro_temp._checks import check_count, check_kind, check_radius
from dro_temp._typing import PerRow, RowIndex, Scalar
from dro_temp.interfaces import SampleRisk
from dro_temp.risks.standalone import StandaloneRisk
from dro_temp.state import Staged


class StepCount(Staged):
    """How many optimizer steps were taken, in host memory: nothing waits for a device to know it.

    Args:
        changed: called when the number has changed.
    """

    memory = ("steps",)
    on_host = True
    steps: Tensor

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self.remember("steps", 1, 0.0)
        self._changed = changed

    def propose(self) -> None:
        """Count the step that follows this forward; in training with gradients enabled."""
        if self.training and torch.is_grad_enabled():
            self.stage(self.steps.new_zeros(1))

    def write(self, *parts: Tensor) -> None:
        """One step, of however many forwards."""
        if parts:
            self.steps += 1
            self._changed()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._changed()


class RisingRadius(StandaloneRisk):
    r"""A risk whose radius rises linearly with the optimizer's steps, from `start` to `rho`, and stays there.

    $$\rho_t = \rho_0 + (\rho - \rho_0) \min(t / T, 1)$$

    Around an optimistic risk it is the distrust in the data: what is not learned yet has large losses, as what is wrong
    has later on, so that a constant radius leaves out whole classes at first. Steps are counted when they are taken
    (`CompositionalOptimizer`, or `commit()`), saved with the state, and counted once however many forwards a step has.

    Args:
        risk: `KLRisk` or `ChiSquareRisk`, or another risk with a number `rho`; its own radius is replaced.
        rho: the last radius, >= 0, in the unit of the risk's.
        steps: T, optimizer steps until it is reached.
        start: the first radius, >= 0.

    Raises:
        TypeError: `risk` is no risk with a radius, `steps` not an int, or a radius not a number.
        ValueError: steps < 1, or a radius that is negative or not finite; at the first training call, what the
            risk says of the largest radius.

    Example:
        >>> import torch, dro_temp as dt
        >>> rising = dt.risks.RisingRadius(dt.KLRisk(0.0), 0.5, steps=2)
        >>> risk, losses = dt.OptimisticRisk(rising), torch.tensor([0.1, 0.2, 0.3, 9.0], requires_grad=True)
        >>> for _ in range(3):
        ...     risk(losses).backward()
        ...     risk.commit()  # a step was taken
        ...     print(f"{rising.rho:.2f}", risk.weights(losses)[3].item() < 0.25)
        0.25 True
        0.50 True
        0.50 True

    Source: this library; docs/wrong-labels.md has the measurements.
    """

    def __init__(self, risk: SampleRisk, rho: float, *, steps: int, start: float = 0.0) -> None:
        super().__init__()
        instead = "Write OptimisticRisk(RisingRadius(KLRisk(0.0), 0.5, steps=1000)), say."
        check_kind("risk", risk, SampleRisk, instead)
        if not isinstance(getattr(risk, "rho", None), float):
            raise TypeError(
                f"expected a risk with a radius rho, received {type(risk).__name__}, which has none. {instead}"
            )
        check_radius(rho)
        check_radius(start)
        self.risk, self.last, self.start = risk, float(rho), float(start)
        self.steps = check_count("steps", steps)
        self.needs_groups = risk.needs_groups
        self.count = StepCount(self._set_radius)
        self._set_radius()

    @property
    def rho(self) -> float:
        """The radius of the next step."""
        share = min(float(self.count.steps) / self.steps, 1.0)
        return self.start + (self.last - self.start) * share

    def _set_radius(self) -> None:
        inner: Any = self.risk
        inner.rho = self.rho

    def value(self, losses: PerRow, weight: PerRow, group: RowIndex | None) -> Scalar:
        """The risk at the current radius."""
        self.risk.check_radius(max(self.start, self.last), weight)  # at the first step, not at the last
        self.count.propose()
        return self.risk.value(losses, weight, group)

    def extra_repr(self) -> str:
        """First and last radius, and how long it rises."""
        return f"start={self.start}, rho={self.last}, steps={self.steps}"
