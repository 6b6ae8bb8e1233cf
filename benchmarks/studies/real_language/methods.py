"""Ways to choose a token's temperature, what is tuned of each, and how it is fitted to the stored training tokens.

Every method that is tuned has six trials: networks of options of their training, rules of starts of a search over their
parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import dro_temp as dt
from benchmarks.studies.common.runs import Options, grid
from benchmarks.studies.real_language.cache import Tokens
from benchmarks.studies.real_language.curves import TAU_MAX, TAU_MIN, Curves
from dro_temp.functional.statistics import LabelStanding
from dro_temp.losses.frozen_host import FrozenHostLoss

BATCH, WARM_UP = 2048, 20
BOUNDS = {"tau_min": TAU_MIN, "tau_max": TAU_MAX}
#: From tokens, and whether each begins a line, to temperatures.
Predict: TypeAlias = Callable[[Tokens, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to choose temperatures.

    Args:
        name: in files and tables.
        trials: options of each trial; a single one if nothing is tuned.
        fit: `(training tokens, which begin a line, head, seed, options)` to a function of tokens.
        seeds: at most so many are used: one where the seed changes nothing.
    """

    name: str
    trials: list[Options]
    fit: Callable[[Tokens, Tensor, Tensor, int, Options], Predict]
    seeds: int = 5


# --- constants ---


def best_constant(curves: Curves) -> float:
    """The temperature of the highest likelihood, by golden section on its logarithm."""
    low, high = torch.tensor([TAU_MIN, TAU_MAX]).log().tolist()
    ratio = (5**0.5 - 1) / 2
    for _ in range(30):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _nll_at(curves, left) < _nll_at(curves, right):
            high = right
        else:
            low = left
    return float(torch.tensor((low + high) / 2).exp())


def _nll_at(curves: Curves, log_tau: float) -> float:
    return float(curves.nll(torch.full_like(curves.target, log_tau).exp()).double().mean())


def _one(*_: Any) -> Predict:
    return lambda tokens, starts: torch.ones(len(tokens))


def _constant(train: Tokens, *_: Any) -> Predict:
    tau = best_constant(train.curves)
    return lambda tokens, starts: torch.full((len(tokens),), tau)


def _constant_per_kind(train: Tokens, *_: Any) -> Predict:
    taus = torch.tensor([best_constant(train.curves[train.kind == k]) for k in range(len(train.kinds))])
    return lambda tokens, starts: taus[tokens.kind]


# --- rules, whose parameters are fitted to the likelihood from six starts ---


def _fitted(
    build: Callable[..., Predict], train: Tokens, starts: Tensor, first: list[float]
) -> tuple[Predict, list[float]]:
    from scipy.optimize import minimize

    def value(parameters: Any) -> float:
        try:
            tau = build(*parameters)(train, starts)
        except ValueError:  # outside the rule's domain
            return 1e3
        return float(train.curves.nll(tau).double().mean())

    found = minimize(
        value, first, method="Nelder-Mead", options={"maxfev": 150, "xatol": 1e-3, "fatol": 1e-6}
    )
    return build(*found.x), found.x.tolist()


def _entropy_rule(rule: dt.predictors.EntropyRule) -> Predict:
    predictor = dt.EntropyTemperature(rule)
    return lambda tokens, starts: predictor(statistics=tokens.statistics()).clamp(TAU_MIN, TAU_MAX)


def _edt(tau0: float, theta: float) -> Predict:
    return _entropy_rule(dt.predictors.EdtRule(tau0=tau0, theta=theta))


def _dynatemp(tau_min: float, tau_max: float, exponent: float) -> Predict:
    return _entropy_rule(dt.predictors.DynatempRule(tau_min, tau_max, exponent))


def _adapt(line_start: float, other: float) -> Predict:
    """ArXiv 2309.02772: one temperature for the first token of a line, another for the rest."""
    return lambda tokens, starts: torch.where(starts, line_start, other).clamp(TAU_MIN, TAU_MAX)


def _rule(build: Callable[..., Predict]) -> Callable[..., Predict]:
    def fit(train: Tokens, starts: Tensor, head: Tensor, seed: int, options: Options) -> Predict:
        return _fitted(build, train, starts, [v for k, v in sorted(options.items())])[0]

    return fit


# --- networks ---

Loss: TypeAlias = Callable[[Curves, Tensor, Options], Tensor]


def likelihood(curves: Curves, tau: Tensor, options: Options) -> Tensor:
    """Negative log-likelihood."""
    return curves.nll(tau).mean()


def robust(curves: Curves, tau: Tensor, options: Options) -> Tensor:
    """The paper's loss; its optimum gives every token the entropy that the option names, log m - rho."""
    return (tau * (curves.nll(tau) - options["entropy"])).mean()


def selective_smoothing(curves: Curves, tau: Tensor, options: Options) -> Tensor:
    """ATS: likelihood where the most likely token is right, else cross-entropy against the uniform distribution."""
    return _frozen_host(dt.SelectiveSmoothingLoss(options["alpha"]), curves, tau)


def self_weighted(curves: Curves, tau: Tensor, options: Options) -> Tensor:
    """AutoDeco: each token weighted by the model's probability of it; those that are right count less."""
    return _frozen_host(dt.SelfWeightedLoss(options["easy_weight"]), curves, tau)


def _frozen_host(loss: FrozenHostLoss, curves: Curves, tau: Tensor) -> Tensor:
    with torch.no_grad():
        log_probability = -curves.nll(torch.ones_like(tau))
        label = LabelStanding(
            gap=-curves.target, log_probability=log_probability, mean_margin=curves.mean - curves.target
        )
    weight, over_tau = loss.coefficients(label)
    return (weight * curves.nll(tau) + over_tau / tau).mean()


LOSSES: dict[str, tuple[Loss, dict[str, tuple[float, ...]]]] = {
    "likelihood": (likelihood, {"lr": (1e-3, 3e-3, 1e-2), "steps": (100, 300)}),
    "robust": (robust, {"lr": (1e-3, 3e-3), "entropy": (2.0, 3.0, 4.0), "steps": (300,)}),
    "selective smoothing": (
        selective_smoothing,
        {"lr": (1e-3, 3e-3), "alpha": (0.02, 0.1, 0.5), "steps": (300,)},
    ),
    "self-weighted": (self_weighted, {"lr": (1e-3, 3e-3, 1e-2), "easy_weight": (0.4, 1.0), "steps": (300,)}),
}


def tempnet(inputs: tuple[str, ...], width: int, outcomes: int) -> dt.TempNet:
    """A network as `TempNet.for_lm` builds it, that starts at temperature 1."""
    predictors = dt.predictors
    if inputs == ("logits",):
        return dt.TempNet.for_logits(outcomes, tau_init=1.0, **BOUNDS)
    build = {
        "hidden": lambda: predictors.HiddenEncoder(width, width=64),
        "statistics": lambda: predictors.StatisticsEncoder(width=64),
    }
    encoders = [build[name]() for name in inputs]
    encoder = encoders[0] if len(encoders) == 1 else predictors.SumEncoder(encoders)
    return dt.TempNet(encoder, tau_init=1.0, readout=predictors.ResidualReadout, **BOUNDS)


def trained(
    inputs: tuple[str, ...], loss: str, train: Tokens, head: Tensor, seed: int, options: Options
) -> dt.TempNet:
    """A network that has been trained on the stored tokens."""
    torch.manual_seed(seed)
    value = LOSSES[loss][0]
    net = tempnet(inputs, *train.hidden.shape[1:], train.curves.outcomes)
    net.train()
    # One pass over the 12.6 million weights of a network over logits: a step takes three quarters of the time.
    optimizer = torch.optim.AdamW(net.parameters(), lr=options["lr"], fused=net.encoder.outcomes is not None)
    generator = torch.Generator().manual_seed(seed)
    steps = int(options["steps"])
    order, place = torch.randperm(len(train), generator=generator), 0
    for step in range(steps):
        if place + BATCH > len(order):
            order, place = torch.randperm(len(train), generator=generator), 0
        rows, place = order[place : place + BATCH], place + BATCH
        optimizer.param_groups[0]["lr"] = options["lr"] * min((step + 1) / WARM_UP, 1 - step / steps)
        tau = _temperatures(net, train, rows, head)
        optimizer.zero_grad()
        value(train.curves[rows], tau, options).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


def _temperatures(net: dt.TempNet, tokens: Tokens, rows: Tensor | slice, head: Tensor) -> Tensor:
    return net(
        tokens.hidden[rows], statistics=tokens.statistics(rows, head if net.encoder.outcomes else None)
    )


def _network(inputs: tuple[str, ...], loss: str) -> Callable[..., Predict]:
    def fit(train: Tokens, starts: Tensor, head: Tensor, seed: int, options: Options) -> Predict:
        net = trained(inputs, loss, train, head, seed, options)

        @torch.no_grad()
        def predict(tokens: Tokens, starts: Tensor) -> Tensor:
            return _temperatures(net, tokens, slice(None), head)

        predict.network = net  # type: ignore[attr-defined]
        return predict

    return fit


INPUTS = {
    "hidden": ("hidden",),
    "statistics": ("statistics",),
    "both": ("hidden", "statistics"),
    "logits": ("logits",),
}
_FIVE_OTHERS = ({"a": 1.5, "b": 0.5}, {"a": 0.8, "b": 0.02}, {"a": 1.1, "b": 0.3}, {"a": 1.0, "b": 0.05})

#: Of the networks over logits, which learn slowly from inputs of length 1: on validation text the highest rate of the
#: others was the best.
HIGHER_RATES = {1e-3: 3e-3, 3e-3: 1e-2, 1e-2: 3e-2}


def _trials(inputs: tuple[str, ...], options: dict[str, tuple[float, ...]]) -> list[Options]:
    rates = options["lr"] if inputs != ("logits",) else tuple(HIGHER_RATES[lr] for lr in options["lr"])
    return grid(**{**options, "lr": rates})


METHODS = {
    m.name: m
    for m in (
        Method("tau = 1", [{}], _one, seeds=1),
        Method("constant", [{}], _constant, seeds=1),
        Method("constant per kind", [{}], _constant_per_kind, seeds=1),
        Method("EDT", [{"a": 1.0, "b": 0.1}, {"a": 1.2, "b": 0.1}, *_FIVE_OTHERS], _rule(_edt), seeds=1),
        Method("AdapT", grid(a=(0.8, 1.0, 1.2), b=(0.9, 1.1)), _rule(_adapt), seeds=1),
        Method("dynatemp", grid(a=(0.7, 0.9), b=(1.2, 2.0, 3.0), c=(1.0,)), _rule(_dynatemp), seeds=1),
        *(
            Method(f"TempNet, {loss}, {label}", _trials(inputs, options), _network(inputs, loss))
            for loss, (_, options) in LOSSES.items()
            for label, inputs in INPUTS.items()
        ),
    )
}
