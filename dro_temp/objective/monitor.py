"""What an objective looks at while it trains: temperatures that do not differ, gradients that are not reduced."""

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

#: Training forwards between two checks; each waits for the device once.
EVERY = 50
#: Consecutive checks with the same result before a warning.
PATIENCE = 10
#: Temperatures whose standard deviation is below this share of their mean are one temperature.
SPREAD = 0.005
#: A temperature within this share of the interval's width of a bound is at that bound; the share of rows that must be.
MARGIN, PINNED = 0.01, 0.9


class TemperatureWarning(UserWarning):
    """A predictor returns one temperature for all rows, or a bound.

    Example:
        >>> import warnings, dro_temp as dt
        >>> warnings.simplefilter("ignore", dt.TemperatureWarning)  # or Objective(..., monitor=False)

    Source: this library.
    """


@dataclass
class _CheckState:
    """Result of the last check of a view, and how many consecutive checks had it."""

    problem: str | None = None
    times: int = 0
    tau: float = float("nan")
    warned: bool = False


class TemperatureMonitor:
    """Checks the temperatures of training forwards from time to time.

    One temperature that has not changed at all since the last check is held, or has not begun to learn, and does not
    count.
    """

    def __init__(self, views: tuple[str, ...]) -> None:
        self._states = {view: _CheckState() for view in views}

    def check(self, view: str, predictor: Any, tau: Tensor) -> None:
        """Warn once for each view, after several checks with the same result."""
        state = self._states[view]
        if state.warned or not predictor.reads or not tau.requires_grad or len(tau) < 2:
            return
        low, high = predictor.tau_min, predictor.tau_max
        margin = MARGIN * (high - low)
        tau = tau.detach().double()
        shares = (bound.double().mean() for bound in (tau < low + margin, tau > high - margin))
        mean, std, at_low, at_high = torch.stack([tau.mean(), tau.std(), *shares]).tolist()
        problem = None
        if at_low >= PINNED:
            problem = f"at the bound tau_min = {low:g}"
        elif at_high >= PINNED:
            problem = f"at the bound tau_max = {high:g}"
        elif std < SPREAD * mean:
            problem = "one temperature"
            if mean == state.tau:
                return
        state.times = state.times + 1 if problem == state.problem else 1
        state.problem, state.tau = problem, mean
        if problem is not None and state.times >= PATIENCE:
            state.warned = True
            name = type(predictor).__name__
            seen = f"(mean {mean:.4g}, standard deviation {std:.2g}) at {PATIENCE} checks, {EVERY} forwards apart"
            message = (
                f"expected temperatures inside ({low:g}, {high:g}) in view {view!r}, received {name}'s {problem} "
                f"{seen}. At tau_min: lower rho, or hold temperatures at the start (dro_temp.hold_temperatures), where "
                "scores hardly differ yet. At tau_max: raise rho or the bound."
            )
            if problem == "one temperature":
                message = (
                    f"expected temperatures that differ from row to row in view {view!r}, received one from {name} "
                    f"{seen}. dro_temp.evaluation.amortisation_gap tells whether better ones were there to find. If "
                    "so: raise tau_lr, start with readout=ResidualReadout, let it read hidden states (HiddenEncoder), "
                    "and for pairs learn from a QueuedLoss. If not, a LearnableTemperature will do."
                )
            warnings.warn(message, TemperatureWarning, stacklevel=2)


class UnreducedGradients:
    """Checks once, at the end of a backward, for gradients that are not reduced over processes.

    FSDP reduces those of the modules that it shards. A TempNet beside a sharded host, say, would train on each
    process's own rows and drift apart.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = [module]  # in a list, where torch does not register it
        self._done = False

    def check_after(self, loss: Tensor) -> None:
        """Check once at the end of this loss's backward, if FSDP shards some of the module."""
        if not self._done and loss.requires_grad and self._sharded():
            # After FSDP's own callback, which puts the sharded parameters back.
            at_end: Any = Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
            loss.register_hook(lambda gradient: at_end(self._refuse))  # type: ignore[no-untyped-call]

    def _sharded(self) -> list[nn.Module]:
        fsdp: Any = sys.modules.get("torch.distributed.fsdp")
        kind = getattr(fsdp, "FSDPModule", None)
        return [] if kind is None else [m for m in self._module[0].modules() if isinstance(m, kind)]

    def _refuse(self) -> None:
        reduced = {id(p) for module in self._sharded() for p in module.parameters()}
        unreduced = [
            name
            for name, p in self._module[0].named_parameters()
            if p.grad is not None and id(p) not in reduced and not hasattr(p, "full_tensor")
        ]
        if unreduced:
            raise RuntimeError(
                f"expected all parts that train to be sharded once some are, received {unreduced[0]} ({len(unreduced)} "
                f"parameters in all) beside sharded ones: its gradients would stay each process's own. "
                "Call fully_shard(objective) after sharding its parts, which takes all that is left."
            )
        self._done = True
