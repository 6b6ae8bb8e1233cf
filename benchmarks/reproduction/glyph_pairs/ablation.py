"""From the paper's network to one that finds the optimal temperatures, a part at a time; nothing is tuned here."""

from glyph_pairs.arms import BOUNDS, GAMMA, TAU_INIT, WIDTH, Arm, Schedule

import dro_temp as dt
from dro_temp.interfaces import HostAdapter

RHO, LR, QUEUE, HOLD = 2.5, 4e-3, 7_000, 0.3


def _arm(
    name: str,
    predictor: str,
    readout: type[dt.TempNetReadout] = dt.PooledReadout,
    *,
    queue: bool = False,
    hold: float = 0.0,
    tau_lr: float = 2e-3,
    dropout: float | None = None,
) -> Arm:
    def net() -> dt.TemperaturePredictor:
        if predictor == "global":
            return dt.LearnableTemperature(TAU_INIT, **BOUNDS)
        if predictor == "hidden":
            encoder: dt.TempNetEncoder = dt.HiddenEncoder(WIDTH, dropout=dropout or 0.0)
        else:
            encoder = dt.PrototypeEncoder(WIDTH, dropout=0.5 if dropout is None else dropout)
        return dt.TempNet(encoder, tau_init=TAU_INIT, readout=readout, **BOUNDS)

    def build(host: HostAdapter, schedule: Schedule, options: dict[str, float]) -> dt.Objective:
        loss = {
            view: dt.KLRobustLoss(RHO, estimator=dt.LogMovingAverage(schedule.samples, gamma=GAMMA))
            for view in host.views
        }
        tau_loss = {
            view: dt.QueuedLoss(dt.KLRobustLoss(RHO), size=QUEUE, features=WIDTH) for view in host.views
        }
        return dt.Objective(
            host, {view: net() for view in host.views}, loss, tau_loss=tau_loss if queue else None
        )

    return Arm(name, build, ("rho", (RHO, RHO)), hold, tau_lr)


_RESIDUAL = dt.ResidualReadout
ABLATION = {
    arm.name: arm
    for arm in (
        _arm("paper", "prototypes"),
        _arm("paper, no dropout", "prototypes", dropout=0.0),
        _arm("hidden, residual, held, queue", "hidden", _RESIDUAL, hold=HOLD, queue=True, tau_lr=4e-3),
        _arm("the same, dropout 0.5", "hidden", _RESIDUAL, hold=HOLD, queue=True, tau_lr=4e-3, dropout=0.5),
        _arm("the same, not held", "hidden", _RESIDUAL, queue=True, tau_lr=4e-3),
        _arm("the same, no queue", "hidden", _RESIDUAL, hold=HOLD, tau_lr=4e-3),
        _arm("the same, neither held nor queue", "hidden", _RESIDUAL, tau_lr=4e-3),
        _arm("paper, held, queue", "prototypes", queue=True, hold=HOLD, tau_lr=4e-3),
        _arm("one temperature, 10 x tau_lr", "global", tau_lr=2e-2),
        _arm("one temperature, 10 x tau_lr, held", "global", tau_lr=2e-2, hold=HOLD),
    )
}
