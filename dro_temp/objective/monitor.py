"""A warning where temperatures that are meant to differ do not."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from dro_temp.interfaces import TemperaturePredictor

#: Training forwards between two checks; each waits for the device once.
EVERY = 50
#: Checks in a row that must find the same before a warning.
PATIENCE = 10
#: Temperatures whose standard deviation is below this share of their mean are one temperature.
SPREAD = 0.005
#: A temperature within this share of the interval's width of a bound is at that bound, and so many must be.
MARGIN, PINNED = 0.01, 0.9


class TemperatureWarning(UserWarning):
    """A predictor gives all rows one temperature, or a bound.

    Example:
        >>> import warnings, dro_temp as dt
        >>> warnings.simplefilter("ignore", dt.TemperatureWarning)  # or Objective(..., monitor=False)

    Source: this library.
    """


@dataclass
class _Finding:
    """What the last check of a view found, and how often in a row."""

    what: str | None = None
    times: int = 0
    tau: float = float("nan")
    warned: bool = False


class TemperatureMonitor:
    """Checks the temperatures of training forwards from time to time.

    One temperature that has not moved at all since the last check is being held, or has not begun to learn: that
    does not count.

    Args:
        views: those of the host.
    """

    def __init__(self, views: tuple[str, ...]) -> None:
        self._seen = {view: _Finding() for view in views}

    def check(self, view: str, predictor: TemperaturePredictor, tau: Tensor) -> None:
        """Warn once for each view, after several checks that found the same."""
        seen = self._seen[view]
        if seen.warned or not predictor.reads or not tau.requires_grad or len(tau) < 2:
            return
        low, high = predictor.tau_min, predictor.tau_max
        margin = MARGIN * (high - low)
        with torch.no_grad():
            parts = (tau.mean(), tau.std(), (tau < low + margin).double().mean())
            mean, std, at_low, at_high = torch.stack(
                [*(x.double() for x in parts), (tau > high - margin).double().mean()]
            ).tolist()
        what = None
        if at_low >= PINNED or at_high >= PINNED:
            bound = f"tau_min = {low:g}" if at_low >= PINNED else f"tau_max = {high:g}"
            what = f"at the bound {bound}"
        elif std < SPREAD * mean:
            what = "one temperature"
        if what == "one temperature" and mean == seen.tau:
            return
        seen.times = seen.times + 1 if what is not None and what == seen.what else int(what is not None)
        seen.what, seen.tau = what, mean
        if what is not None and seen.times >= PATIENCE:
            seen.warned = True
            warnings.warn(_message(view, predictor, what, mean, std), TemperatureWarning, stacklevel=2)


def _message(view: str, predictor: TemperaturePredictor, what: str, mean: float, std: float) -> str:
    name, seen = type(predictor).__name__, f"mean {mean:.4g}, standard deviation {std:.2g}"
    if what == "one temperature":
        return (
            f"expected temperatures that differ from row to row in view {view!r}, received one from {name} ({seen}) "
            f"at {PATIENCE} checks, {EVERY} forwards apart. dro_temp.evaluation.amortisation_gap tells whether better "
            "ones were there to find. If so: raise tau_lr, start with readout=ResidualReadout, let it read hidden "
            "states (HiddenEncoder), and for pairs learn from a QueuedLoss. If not, a LearnableTemperature will do."
        )
    return (
        f"expected temperatures inside ({predictor.tau_min:g}, {predictor.tau_max:g}) in view {view!r}, received "
        f"{name}'s {what} ({seen}) at {PATIENCE} checks, {EVERY} forwards apart. At tau_min: lower rho, or hold "
        "temperatures at the start (dro_temp.hold_temperatures), where scores hardly differ yet. At tau_max: raise rho "
        "or the bound."
    )
