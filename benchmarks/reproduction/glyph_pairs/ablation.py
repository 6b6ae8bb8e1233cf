"""From the paper's network to one that finds the optimal temperatures, a part at a time; nothing is tuned here."""

import math
from collections.abc import Callable
from typing import Any

import torch
from glyph_pairs.arms import BOUNDS, GAMMA, TAU_INIT, WIDTH, Arm, Schedule

import dro_temp as dt
from dro_temp.interfaces import HostAdapter

RHO, LR, QUEUE, HOLD = 2.5, 4e-3, 7_000, 0.3


class JitteredTemperature(dt.TemperaturePredictor):
    r"""$\tau e^{\sigma \varepsilon}$ with a new $\varepsilon \sim N(0, 1)$ for every row while training.

    What dropout in a network does to temperatures, without the network.
    """

    reads = frozenset({"features"})

    def __init__(self, tau: float, sigma: float) -> None:
        super().__init__(**BOUNDS)
        self.tau, self.sigma = tau, sigma

    def raw(self, reading: dt.interfaces.PredictorInputs) -> torch.Tensor:
        """The logit of the temperature's place between the bounds."""
        assert inputs.features is not None
        noise = torch.randn(len(inputs.features)) * (self.sigma if self.training else 0.0)
        tau = (self.tau * noise.exp()).clamp(self.tau_min * 1.001, self.tau_max * 0.999)
        return torch.logit((tau - self.tau_min) / (self.tau_max - self.tau_min))


class LogTempNet(dt.TempNet):
    r"""Predicts $\log \tau$ between the logarithms of the bounds."""

    def __init__(
        self,
        encoder: dt.predictors.TempNetEncoder,
        *,
        tau_init: float,
        tau_min: float,
        tau_max: float,
        readout: type[dt.predictors.TempNetReadout],
    ) -> None:
        super().__init__(encoder, tau_min=tau_min, tau_max=tau_max, readout=readout)
        self.readout.start_at(dt.functional.logit_between(*map(math.log, (tau_init, tau_min, tau_max))))

    def bound(self, raw: torch.Tensor) -> torch.Tensor:
        """Half way is the geometric mean of the bounds."""
        return dt.functional.sigmoid_between(raw, math.log(self.tau_min), math.log(self.tau_max)).exp()


class Regression(dt.RobustLoss):
    r"""$\frac12 (\log \tau_i - \log \tau_i^*)^2$, with the exact optimum on the scores that are seen.

    An optimum costs as much as a step of the encoders, so only every fourth row has one.

    Args:
        rho: radius of the robust loss.
        until: calls after which the robust loss takes over; None for never.
    """

    def __init__(self, rho: float, until: int | None = None) -> None:
        super().__init__()
        self.rho, self.until, self.calls = rho, until, 0
        self.robust = dt.KLRobustLoss(rho)

    def values(self, rows: dt.Rows, tau: torch.Tensor) -> torch.Tensor:
        """Zero for rows that are left out."""
        self.calls += 1
        if self.until is not None and self.calls > self.until:
            return self.robust.values(rows, tau)
        some = torch.arange(0, len(rows), 4)
        few = rows.select(some)
        with torch.no_grad():
            # Newton doubles its digits with each iteration, and the targets move with the model anyway.
            best = dt.functional.optimal_tau(
                few.margins, rho=self.rho, mask=few.mask, iterations=10, **BOUNDS
            )
        return torch.zeros_like(tau).index_put((some,), 0.5 * (tau[some].log() - best.log()).square())


def _arm(
    name: str,
    predictor: str,
    readout: type[dt.predictors.TempNetReadout] = dt.predictors.PooledReadout,
    *,
    queue: bool = False,
    replay: int = 0,
    hold: float = 0.0,
    tau_lr: float = 2e-3,
    dropout: float | None = None,
    tau_beta: float = 0.999,
    sigma: float = 0.0,
    log: bool = False,
    width: int = 256,
    tau_init: float = TAU_INIT,
    regression: Callable[[], dt.RobustLoss] | None = None,
) -> Arm:
    def net() -> dt.TemperaturePredictor:
        if predictor == "global":
            return dt.LearnableTemperature(TAU_INIT, **BOUNDS)
        if predictor == "jitter":
            return JitteredTemperature(TAU_INIT, sigma)
        if predictor == "hidden":
            encoder: dt.predictors.TempNetEncoder = dt.predictors.HiddenEncoder(
                WIDTH, width=width, dropout=dropout or 0.0
            )
        else:
            encoder = dt.predictors.PrototypeEncoder(WIDTH, dropout=0.5 if dropout is None else dropout)
        if log:
            return LogTempNet(encoder, tau_init=tau_init, readout=readout, **BOUNDS)
        return dt.TempNet(encoder, tau_init=tau_init, readout=readout, **BOUNDS)

    def build(host: HostAdapter, schedule: Schedule, options: dict[str, float]) -> dt.Objective:
        loss = {
            view: dt.KLRobustLoss(RHO, estimator=dt.LogMovingAverage(schedule.samples, gamma=GAMMA))
            for view in host.views
        }
        seen = regression or (lambda: dt.KLRobustLoss(RHO))
        tau_loss = {
            view: dt.QueuedLoss(seen(), size=QUEUE, features=WIDTH, replay=replay) for view in host.views
        }
        return dt.Objective(
            host, {view: net() for view in host.views}, loss, tau_loss=tau_loss if queue else None
        )

    return Arm(name, build, ("rho", (RHO, RHO)), hold, tau_lr, tau_beta)


_RESIDUAL = dt.predictors.ResidualReadout
_OURS: dict[str, Any] = {"readout": _RESIDUAL, "queue": True, "hold": HOLD, "tau_lr": 4e-3}
ABLATION = {
    arm.name: arm
    for arm in (
        _arm("paper", "prototypes"),
        _arm("paper, no dropout", "prototypes", dropout=0.0),
        _arm("hidden, residual, held, queue", "hidden", **_OURS),
        _arm("the same, 128 rows replayed", "hidden", **_OURS, replay=128),
        _arm("the same, 512 rows replayed", "hidden", **_OURS, replay=512),
        _arm("the same, 1024 rows replayed", "hidden", **_OURS, replay=1024),
        _arm("the same, dropout 0.5", "hidden", **_OURS, dropout=0.5),
        _arm("the same, width 64", "hidden", **_OURS, width=64),
        _arm("the same, width 512", "hidden", **_OURS, width=512),
        _arm("the same, log τ", "hidden", **_OURS, log=True),
        _arm("the same, τ starts at 0.05", "hidden", **_OURS, tau_init=0.05),
        _arm("the same, τ starts at 0.2", "hidden", **_OURS, tau_init=0.2),
        _arm("the same, tau_lr 2e-3", "hidden", **{**_OURS, "tau_lr": 2e-3}),
        _arm("the same, tau_lr 8e-3", "hidden", **{**_OURS, "tau_lr": 8e-3}),
        _arm("the same, β2 0.99", "hidden", **_OURS, tau_beta=0.99),
        _arm("the same, not held", "hidden", _RESIDUAL, queue=True, tau_lr=4e-3),
        _arm("the same, no queue", "hidden", _RESIDUAL, hold=HOLD, tau_lr=4e-3),
        _arm("the same, neither held nor queue", "hidden", _RESIDUAL, tau_lr=4e-3),
        _arm("the same, regression on the optimum", "hidden", **_OURS, regression=lambda: Regression(RHO)),
        _arm("the same, started by regression", "hidden", **_OURS, regression=lambda: Regression(RHO, 300)),
        _arm("paper, held, queue", "prototypes", queue=True, hold=HOLD, tau_lr=4e-3),
        _arm(
            "paper, held, queue, 512 replayed", "prototypes", queue=True, replay=512, hold=HOLD, tau_lr=4e-3
        ),
        _arm("one temperature, 10 x tau_lr", "global", tau_lr=2e-2),
        _arm("one temperature, 10 x tau_lr, held", "global", tau_lr=2e-2, hold=HOLD),
        _arm("constant", "jitter"),
        _arm("constant, jitter 0.04", "jitter", sigma=0.04),
        _arm("constant, jitter 0.2", "jitter", sigma=0.2),
    )
}
