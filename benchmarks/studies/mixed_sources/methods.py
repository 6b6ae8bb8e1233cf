"""Methods that are compared; each has six trials: two learning rates, three values of its most important option."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import dro_temp as dt
from benchmarks.studies.common.runs import grid
from benchmarks.studies.two_towers.methods import BOUNDS, GAMMA, TAU_INIT
from dro_temp.interfaces import PredictorInputs, RobustLoss, Rows, TemperaturePredictor

RATES = (2e-3, 4e-3)

Options = Mapping[str, float]


@dataclass(frozen=True)
class Facts:
    """What a method is told of the training pairs; oracles are told what is unknown in practice.

    Args:
        steps: optimizer steps of the run.
        width: width of both encoders' vectors.
        noise: share of wrong captions in each pair's source, [n]: for oracles.
        cluster_size: number of training captions in the cluster of each pair's caption, [n].
    """

    steps: int
    width: int
    noise: Tensor
    cluster_size: Tensor

    @property
    def samples(self) -> int:
        """Training pairs."""
        return len(self.noise)


@dataclass(frozen=True)
class Method:
    """A way to choose temperatures and weights.

    Args:
        name: in files and tables.
        build: the objective, from two encoders, the facts and a trial's options.
        tuned: the option that is tuned beside the learning rate, and its values.
        schedule: temperature of each step, of the share of the run that is over; None: the predictor's own.
        right_only: whether wrong pairs are removed, which is impossible in practice.
        hold: share of training in which temperatures stay at their start.
        tau_lr: learning rate of the temperatures.
        tau_beta: AdamW's second beta for the temperatures.
        is_oracle: whether it uses what is unknown in practice.
    """

    name: str
    build: Callable[[nn.Module, nn.Module, Facts, Options], dt.Objective]
    tuned: tuple[str, tuple[float, ...]]
    schedule: Callable[[float, Options], float] | None = None
    right_only: bool = False
    hold: float = 0.0
    tau_lr: float = 2e-3
    tau_beta: float = 0.999
    is_oracle: bool = False

    def trials(self, rates: Sequence[float] = RATES) -> list[dict[str, float]]:
        """Options of each trial."""
        option, values = self.tuned
        return grid(lr=rates, **{option: values})


class TableTemperature(TemperaturePredictor):
    """A given temperature for each sample, plus a number for all that may follow a schedule."""

    reads = frozenset({"index"})
    table: Tensor

    def __init__(self, table: Tensor, *, tau_min: float = 0.005, tau_max: float = 1.0) -> None:
        super().__init__(tau_min=tau_min, tau_max=tau_max)
        self.register_buffer("table", table)
        self.shift = 0.0

    def raw(self, inputs: PredictorInputs) -> Tensor:
        """The sample's own, shifted."""
        return self.table[inputs.index] + self.shift

    def bound(self, raw: Tensor) -> Tensor:
        """Clipped."""
        return raw.clamp(self.tau_min, self.tau_max)


class WeightedTwoTower(dt.hosts.TwoTower):
    """Two encoders whose pairs count as much as a table says."""

    table: Tensor

    def __init__(self, image: nn.Module, text: nn.Module, table: Tensor) -> None:
        super().__init__(image, text)
        self.register_buffer("table", table)

    def rows(self, images: Any, texts: Any, index: Any = None) -> dict[str, Rows]:
        """Rows with weights."""
        rows = super().rows(images, texts, index)
        return {view: replace(each, weight=self.table[index]) for view, each in rows.items()}


def robust(host: dt.hosts.TwoTower, samples: int, rho: float = 0.0) -> dict[str, dt.KLRobustLoss]:
    """The robust loss of each view with a moving average of its own."""
    return {
        view: dt.KLRobustLoss(rho, estimator=dt.LogMovingAverage(samples, gamma=GAMMA)) for view in host.views
    }


def _entropic(host: dt.hosts.TwoTower, samples: int) -> dict[str, dt.EntropicRiskLoss]:
    return {
        view: dt.EntropicRiskLoss(estimator=dt.LogMovingAverage(samples, gamma=GAMMA)) for view in host.views
    }


def optimistic(rho: float, steps: int) -> dt.OptimisticRisk:
    """The best case within a ball whose radius rises over the run."""
    return dt.OptimisticRisk(dt.risks.RisingRadius(dt.KLRisk(0.0), rho, steps=steps))


def of_source(facts: Facts, power: float) -> Tensor:
    """A temperature for each pair that rises with its source's share of wrong captions; their mean log is fixed."""
    centred = facts.noise - facts.noise.mean()
    return TAU_INIT * torch.exp(power * centred / 0.35)


def _infonce(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    return dt.recipes.infonce(dt.hosts.TwoTower(image, text), tau_init=o["tau_init"])


def _infonce_constant(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    return dt.Objective(
        dt.hosts.TwoTower(image, text), dt.ConstantTemperature(o.get("tau", TAU_INIT)), dt.InfoNCELoss()
    )


def _sogclr(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    return dt.recipes.sogclr(dt.hosts.TwoTower(image, text), f.samples, tau=o["tau"], gamma=GAMMA)


def _isogclr(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    return dt.recipes.isogclr(
        dt.hosts.TwoTower(image, text), f.samples, rho=o["rho"], tau_init=TAU_INIT, gamma=GAMMA, **BOUNDS
    )


def _tempnet_paper(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    return dt.recipes.tempnet(
        dt.hosts.TwoTower(image, text),
        f.samples,
        f.width,
        rho=o["rho"],
        tau_init=TAU_INIT,
        gamma=GAMMA,
        **BOUNDS,
    )


def _tempnet_ours(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    return dt.recipes.tempnet_queued(
        dt.hosts.TwoTower(image, text),
        f.samples,
        f.width,
        rho=o["rho"],
        tau_init=TAU_INIT,
        gamma=GAMMA,
        queue=7_000,
        **BOUNDS,
    )


def _mm_ts(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    size = f.cluster_size.float()
    share = (size - size.min()) / (size.max() - size.min()).clamp(min=1)
    # Shifts from the least temperature of the cosine's upper half on, so that none reaches zero.
    low, high = TAU_INIT - 0.03, TAU_INIT - 0.03 + o["spread"]
    table = TableTemperature(low + (high - low) * share, tau_min=0.02)
    return dt.Objective(dt.hosts.TwoTower(image, text), table, dt.InfoNCELoss())


def _oracle_robust(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    host = dt.hosts.TwoTower(image, text)
    return dt.Objective(host, TableTemperature(of_source(f, o["power"])), robust(host, f.samples))


def _oracle_entropic(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    host = dt.hosts.TwoTower(image, text)
    return dt.Objective(host, TableTemperature(of_source(f, o["power"])), _entropic(host, f.samples))


def _oracle_weights(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    host = WeightedTwoTower(image, text, (1 - f.noise) ** o["power"])
    return dt.Objective(host, dt.ConstantTemperature(TAU_INIT), robust(host, f.samples))


def _optimistic(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    host = dt.hosts.TwoTower(image, text)
    risk = {view: optimistic(o["rho"], f.steps) for view in host.views}
    return dt.Objective(host, dt.ConstantTemperature(TAU_INIT), robust(host, f.samples), risk=risk)


# The network: taught by likelihood which images have doubtful captions, at a level that is held.

_LEVEL, _SCALE = 0.14, 0.07


class Shuffled(RobustLoss):
    """A loss at the same temperatures, dealt out anew among the rows of a batch: only their spread is left."""

    def __init__(self, loss: RobustLoss) -> None:
        super().__init__()
        self.loss, self.generator = loss, torch.Generator().manual_seed(0)

    def values(self, rows: Rows, tau: Tensor) -> Tensor:
        """Those of the loss; both views of a pair stay alike, since both draw from the same seed."""
        return self.loss.values(rows, tau[torch.randperm(len(tau), generator=self.generator)])


class WeightedByTemperature(RobustLoss):
    """A loss at one temperature, with the weights that the temperatures have in the entropic form: 1 / tau."""

    def __init__(self, loss: RobustLoss) -> None:
        super().__init__()
        self.loss = loss

    def values(self, rows: Rows, tau: Tensor) -> Tensor:
        """Those of the loss, weighted."""
        return self.loss.values(rows, torch.full_like(tau, _LEVEL)) * (_LEVEL / tau)


def _network(
    image: nn.Module,
    text: nn.Module,
    f: Facts,
    o: Options,
    *,
    changed: Callable[[RobustLoss], RobustLoss] = lambda loss: loss,
    rho: float | None = None,
) -> dt.Objective:
    host = dt.hosts.TwoTower(image, text)
    network = dt.TempNet(
        dt.predictors.HiddenEncoder(f.width),
        tau_min=0.01,
        tau_max=1.0,
        readout=dt.predictors.ResidualReadout,
    )
    return dt.Objective(
        host,
        dt.predictors.LevelTemperature(network, tau=_LEVEL, power=o["power"], tau_min=0.01, tau_max=0.3),
        {view: changed(loss) for view, loss in _entropic(host, f.samples).items()},
        tau_loss=dt.losses.ScaledLikelihoodLoss(
            dt.LearnableTemperature(_SCALE), tau=_LEVEL, power=o["power"]
        ),
        tau_from={"text": "image"},
        risk=None if rho is None else {view: optimistic(rho, f.steps) for view in host.views},
    )


def _entropic_constant(image: nn.Module, text: nn.Module, f: Facts, o: Options) -> dt.Objective:
    host = dt.hosts.TwoTower(image, text)
    return dt.Objective(host, dt.ConstantTemperature(o.get("tau", _LEVEL)), _entropic(host, f.samples))


def _cosine(progress: float, o: Options) -> float:
    """Kukleva's schedule from the highest temperature to the lowest and back, in two periods of the run."""
    low, high = 0.05, o["tau_high"]
    return low + (high - low) * 0.5 * (1 + math.cos(2 * math.pi * 2 * progress))


def _mm_ts_shift(progress: float, o: Options) -> float:
    """Half the amplitude times the cosine, one period a run, as in the released code."""
    return 0.5 * 0.05 * math.cos(2 * math.pi * progress)


_CONSTANTS = ("tau", (0.07, 0.1, 0.15))
_RADII = ("rho", (1.0, 1.75, 2.5))
_POWERS = ("power", (0.35, 0.7, 1.0))
# A tenth of the training at the level, as `hold_temperatures` does.
_NETWORK = {"hold": 0.1, "tau_lr": 1e-3}

METHODS = {
    method.name: method
    for method in (
        Method("infonce", _infonce, ("tau_init", (0.05, 0.1, 0.2))),
        Method("infonce-constant", _infonce_constant, _CONSTANTS),
        Method("infonce-cosine", _infonce_constant, ("tau_high", (0.1, 0.15, 0.25)), schedule=_cosine),
        Method("mm-ts", _mm_ts, ("spread", (0.05, 0.1, 0.2)), schedule=_mm_ts_shift),
        Method("sogclr", _sogclr, _CONSTANTS),
        Method("isogclr", _isogclr, _RADII),
        Method("tempnet-paper", _tempnet_paper, _RADII),
        Method("tempnet-ours", _tempnet_ours, _RADII, hold=0.3, tau_lr=4e-3),
        Method("optimistic", _optimistic, ("rho", (0.4, 0.7, 1.0))),
        Method("entropic-constant", _entropic_constant, _CONSTANTS),
        Method("network", _network, _POWERS, **_NETWORK),
        Method("network-and-optimistic", partial(_network, rho=0.7), _POWERS, **_NETWORK),
        Method("oracle-tau", _oracle_robust, _POWERS, is_oracle=True),
        Method("oracle-tau-and-weight", _oracle_entropic, _POWERS, is_oracle=True),
        Method("oracle-weight", _oracle_weights, ("power", (0.5, 1.0, 2.0)), is_oracle=True),
        Method("right-pairs-alone", _sogclr, _CONSTANTS, right_only=True, is_oracle=True),
    )
}

#: What of the network does it: the same network, chosen options and seeds.
CONTROLS = {
    method.name: method
    for method in (
        Method("network, shuffled", partial(_network, changed=Shuffled), _POWERS, **_NETWORK),
        Method(
            "network, weights alone", partial(_network, changed=WeightedByTemperature), _POWERS, **_NETWORK
        ),
        Method("network, path of its mean", _entropic_constant, _CONSTANTS),
    )
}
