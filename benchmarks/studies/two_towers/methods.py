"""Methods that are compared; each has four trials: two learning rates, two values of its most important option."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dro_temp as dt
from benchmarks.studies.common.runs import grid
from dro_temp.interfaces import HostAdapter

WIDTH = 96
BOUNDS = {"tau_min": 0.01, "tau_max": 0.3}
TAU_INIT, GAMMA = 0.1, 0.8


@dataclass(frozen=True)
class Schedule:
    """Length of a run; some methods need it in advance."""

    samples: int
    epochs: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Method:
    """A way to choose temperatures.

    Args:
        name: in files and tables.
        build: the objective, from a host, the run's schedule and a trial's options.
        tuned: the option that is tuned beside the learning rate, and its values.
        hold: share of training in which temperatures stay at their start (`hold_temperatures`). Their learning rate
            is then constant until the last three tenths; otherwise it follows the encoders' cosine.
        tau_lr: learning rate of the temperatures.
        tau_beta: AdamW's second beta for the temperatures.
        rates: learning rates of the encoders in the trials.
    """

    name: str
    build: Callable[[HostAdapter, Schedule, dict[str, float]], dt.Objective]
    tuned: tuple[str, tuple[float, float]]
    hold: float = 0.0
    tau_lr: float = 2e-3
    tau_beta: float = 0.999
    rates: tuple[float, ...] = (4e-3, 8e-3)

    def trials(self, rates: Sequence[float] | None = None) -> list[dict[str, float]]:
        """Options of each trial, at the method's own learning rates unless others are given."""
        option, values = self.tuned
        return grid(lr=rates or self.rates, **{option: values})


def _infonce_tempnet(host: HostAdapter, s: Schedule, o: dict[str, float]) -> dt.Objective:
    predictor = {
        view: dt.TempNet(
            dt.predictors.HiddenEncoder(WIDTH),
            **BOUNDS,
            tau_init=o["tau_init"],
            readout=dt.predictors.ResidualReadout,
        )
        for view in host.views
    }
    return dt.Objective(host, predictor, dt.InfoNCELoss())


def _constant(host: HostAdapter, s: Schedule, o: dict[str, float]) -> dt.Objective:
    return dt.Objective(host, dt.ConstantTemperature(o["tau"]), dt.InfoNCELoss())


_STARTS = ("tau_init", (0.05, 0.1))
_RADII = ("rho", (1.5, 2.5))

METHODS = {
    method.name: method
    for method in (
        Method("infonce", lambda h, s, o: dt.recipes.infonce(h, tau_init=o["tau_init"]), _STARTS),
        Method("infonce-constant", _constant, ("tau", (0.07, 0.1))),
        Method("infonce-tempnet", _infonce_tempnet, _STARTS),
        # It diverges at the others' learning rates, so it gets twice as many trials.
        Method(
            "cyclip",
            lambda h, s, o: dt.recipes.cyclip(h, tau_init=o["tau_init"]),
            _STARTS,
            rates=(1e-3, 2e-3, 4e-3, 8e-3),
        ),
        Method(
            "sogclr",
            lambda h, s, o: dt.recipes.sogclr(h, s.samples, tau=o["tau"], gamma=GAMMA),
            ("tau", (0.07, 0.1)),
        ),
        Method(
            "noisy-pairs",
            lambda h, s, o: dt.recipes.noisy_pairs(
                h, s.samples, steps=s.epochs * s.steps_per_epoch, tau=TAU_INIT, rho=o["rho"], gamma=GAMMA
            ),
            ("rho", (0.4, 0.7)),
        ),
        Method(
            "isogclr",
            lambda h, s, o: dt.recipes.isogclr(
                h, s.samples, rho=o["rho"], tau_init=TAU_INIT, gamma=GAMMA, **BOUNDS
            ),
            _RADII,
        ),
        Method(
            "fastclip-v3",
            lambda h, s, o: dt.recipes.fastclip_v3(
                h,
                s.samples,
                epochs=s.epochs,
                steps_per_epoch=s.steps_per_epoch,
                rho=o["rho"],
                tau_init=TAU_INIT,
                **BOUNDS,
            ),
            _RADII,
        ),
        Method(
            "rgcl-g",
            lambda h, s, o: dt.Objective(
                h,
                dt.LearnableTemperature(TAU_INIT, **BOUNDS),
                {
                    view: dt.KLRobustLoss(o["rho"], estimator=dt.LogMovingAverage(s.samples, gamma=GAMMA))
                    for view in h.views
                },
            ),
            _RADII,
        ),
        Method(
            "tempnet-paper",
            lambda h, s, o: dt.recipes.tempnet(
                h, s.samples, WIDTH, rho=o["rho"], tau_init=TAU_INIT, gamma=GAMMA, **BOUNDS
            ),
            _RADII,
        ),
        Method(
            "tempnet-ours",
            lambda h, s, o: dt.recipes.tempnet_queued(
                h,
                s.samples,
                WIDTH,
                rho=o["rho"],
                tau_init=TAU_INIT,
                gamma=GAMMA,
                queue=7_000,
                **BOUNDS,
            ),
            _RADII,
            hold=0.3,
            tau_lr=4e-3,
        ),
    )
}
