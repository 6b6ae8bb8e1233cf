"""Temperatures about a level that is kept: a predictor orders the rows, and their geometric mean stays."""

import math
from functools import partial

import torch
from torch import Tensor

from dro_temp import distributed
from dro_temp import functional as F
from dro_temp._checks import check_kind, check_positive, check_share, check_within
from dro_temp._tensors import at_least_float32
from dro_temp._typing import Features, PerRow, RowMask
from dro_temp.interfaces import PredictorInputs, TemperaturePredictor
from dro_temp.state import Staged


class RunningLevel(Staged):
    """Running mean of what a predictor computes of the rows; an optimizer step moves it.

    Args:
        gamma: weight of a new batch, in (0, 1]; the first one in which a row counts does so fully.
    """

    memory = ("mean", "steps")
    mean: Tensor
    steps: Tensor

    def __init__(self, gamma: float) -> None:
        super().__init__()
        check_share("gamma", gamma)
        self.gamma = float(gamma)
        self.remember("mean", 1, 0.0)
        self.remember("steps", 1, 0.0)

    def check(self, index: Tensor) -> None:
        """Nothing to check: there is one number for all samples."""

    def propose(self, distance: PerRow, counts: RowMask | None) -> None:
        """Stage the rows' mean distance from the level, over all processes; `counts` is None where all rows count."""
        usable = distance.isfinite()  # NaN and infinity would stay in the memory for good
        usable = usable if counts is None else usable & counts
        sums = torch.stack([distance.masked_fill(~usable, 0.0).sum(), usable.sum().to(distance.dtype)])
        self.stage(distributed.sum_over_processes(sums)[None])

    def write(self, *parts: Tensor) -> None:
        """Move the level by a share of the mean distance over all proposals."""
        if parts:
            distance, count = parts[0].sum(0).to(self.mean.dtype)
            share = torch.where(self.steps == 0, 1.0, self.gamma).to(self.mean.dtype)
            self.mean += share * distance / count.clamp(min=1.0)
            # A batch in which no row counts says nothing of the level.
            self.steps += (count > 0).to(self.steps.dtype)


class LevelTemperature(TemperaturePredictor):
    r"""$\tau_i = \tau\, e^{p\,(z_i - \bar z)}$: another predictor's numbers $z_i$ about their running mean $\bar z$.

    The geometric mean of the temperatures stays $\tau$, whatever the loss that trains the predictor: it learns which
    rows get higher ones than others, and not how high all are. A likelihood of pairs, say, orders rows well and drives
    all temperatures down together.

    $z_i$ is what the wrapped predictor computes before its bounds, which do not count. $\bar z$ is memory: an
    `Objective` shows it the temperatures of each training forward, an optimizer step moves it, and evaluation, export
    and serving use it as it is. It follows temperatures after their bounds, so that the level holds where some rows lie
    at one; where many do, as at a start far from the level, a step sees only what the bounds leave of the distance, and
    the level takes many of them. The part of the gradient that is common to all rows would only move the level, and is
    taken out; not under `torch.compile`, nor for a predictor of scores inside a streaming loss, where the level then
    lags behind.

    Args:
        predictor: computes z: a `TempNet`, say.
        tau: the geometric mean, between the bounds.
        power: p, > 0: how far temperatures are apart for given z.
        tau_min: lower bound, > 0.
        tau_max: upper bound.
        gamma: weight of a new batch in the running mean, in (0, 1].

    Raises:
        TypeError: `predictor` is not a TemperaturePredictor.
        ValueError: bounds that do not form an interval, a level outside it, a power that is not positive, or a
            predictor that updates itself, in units of its own temperatures.

    Example:
        >>> import torch, dro_temp as dt
        >>> network = dt.TempNet(dt.predictors.HiddenEncoder(8), tau_min=0.01, tau_max=1.0)
        >>> predictor = dt.predictors.LevelTemperature(network, tau=0.14, power=0.7, tau_min=0.01, tau_max=0.3)
        >>> features = torch.randn(64, 8)
        >>> predictor.observe_tau(predictor(features), None)  # in training an Objective does this ...
        >>> predictor.level.commit()  # ... and an optimizer step that
        >>> predictor.eval()(features).log().mean().exp()
        tensor(0.1400, grad_fn=<...>)

    Source: this library.
    """

    observes_tau = True

    def __init__(
        self,
        predictor: TemperaturePredictor,
        *,
        tau: float,
        tau_min: float,
        tau_max: float,
        power: float = 1.0,
        gamma: float = 0.1,
    ) -> None:
        super().__init__(tau_min=tau_min, tau_max=tau_max)
        check_kind("predictor", predictor, TemperaturePredictor, "Pass TempNet(512, ...), say.")
        if predictor.observes_gradient or predictor.observes_tau:
            raise ValueError(
                f"expected a predictor that an optimizer trains, received {type(predictor).__name__}, which updates "
                "itself from its own temperatures. Pass a TempNet, or IndividualTemperature(..., update=None)."
            )
        check_within("tau", tau, tau_min, tau_max)
        check_positive("power", power)
        self.predictor, self.tau, self.power = predictor, float(tau), float(power)
        self.reads = predictor.reads
        self.level = RunningLevel(gamma)

    def raw(self, inputs: PredictorInputs) -> PerRow:
        """Log tau."""
        z = at_least_float32(self.predictor.raw(inputs))
        return math.log(self.tau) + self.power * (z - self.level.mean.to(z.dtype))

    def bound(self, raw: PerRow) -> PerRow:
        """Clipped in the log domain, with a gradient that leads back inside."""
        return F.exp_between(raw, self.tau_min, self.tau_max)

    def observe_tau(self, tau: PerRow, counts: RowMask | None) -> None:
        """Stage how far the level has moved, and take the part of the gradient out that would move it.

        That part has no effect once the level has followed, and would move the network for ever.
        """
        with torch.no_grad():
            self.level.propose((tau.detach() / self.tau).log() / self.power, counts)
        if tau.requires_grad and not torch.compiler.is_compiling():
            tau.register_hook(partial(_without_common_part, tau.detach(), counts))  # type: ignore[no-untyped-call]

    def start_prototypes(self, others: Features) -> None:
        """Those of the wrapped predictor."""
        self.predictor.start_prototypes(others)

    @property
    def input_sizes(self) -> tuple[int | None, int | None]:
        """Those of the wrapped predictor."""
        return self.predictor.input_sizes

    def extra_repr(self) -> str:
        """Level, power and bounds."""
        return f"tau={self.tau}, power={self.power}, {super().extra_repr()}"


def _without_common_part(tau: PerRow, counts: RowMask | None, gradient: PerRow) -> PerRow:
    """A gradient of temperatures without that of a factor common to all rows, of all processes."""
    counts = torch.ones_like(tau, dtype=torch.bool) if counts is None else counts
    by_log = (gradient * tau).masked_fill(~counts, 0.0)
    total, count = distributed.sum_over_processes(torch.stack([by_log.sum(), counts.sum().to(tau.dtype)]))
    return torch.where(counts, gradient - total / count.clamp(min=1.0) / tau, gradient)
