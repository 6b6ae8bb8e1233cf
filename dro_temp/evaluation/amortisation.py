"""What is lost by predicting temperatures instead of solving for them, at one time and over training."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dro_temp._checks import check_bounds, check_count, check_inside, check_kind
from dro_temp._typing import PerRow
from dro_temp.evaluation._batches import (
    HostBatch,
    check_batches,
    rows_of,
    with_progress,
    without_side_effects,
)
from dro_temp.evaluation._inputs import check_tau
from dro_temp.evaluation._reports import SHARES, TAU_TITLES, Report, recovered_share, share_cell
from dro_temp.evaluation._sampled_rows import RobustLosses, RowSample, robust_losses
from dro_temp.functional.ranks import places, rank_correlation
from dro_temp.functional.resampling import generator, interval, times_drawn
from dro_temp.interfaces import Rows, TemperaturePredictor
from dro_temp.losses import KLRobustLoss
from dro_temp.objective import Objective

Pair = tuple[float, float]

_WITH_INTERVALS = ("gap", "recovered", "rank_correlation")


@dataclass(frozen=True)
class TemperatureSpread:
    """Distribution of temperatures over rows.

    Args:
        mean: mean.
        std: standard deviation, of the rows as a whole population.
        quantiles: temperature by share of rows below it: 0.5 is the median. Each is one that occurred.
        at_bound: share of rows, in [0, 1], within 1 % of a bound.
    """

    mean: float
    std: float
    quantiles: dict[float, float]
    at_bound: float

    def _cells(self) -> list[str]:
        shares = " / ".join(f"{self.quantiles[share]:.4g}" for share in (0.05, 0.5, 0.95))
        return [f"{self.mean:.4g} ({self.std:.2g})", shares, f"{100 * self.at_bound:.1f}"]


@dataclass(frozen=True)
class AmortisationGap(Report):
    """What is lost by predicting temperatures instead of solving for the best one of every row.

    Losses are means over the sampled rows; intervals are percentile bootstrap intervals over these rows, `(low, high)`,
    with the data and the best constant fixed.

    Args:
        view: name of the host's view.
        rows: number of rows that were sampled.
        available: number of rows that count.
        outcomes: number of outcomes in a row's support, m; the least where rows differ.
        rho: radius of the robust loss.
        tau_min: lower bound of the optimum and of the constant.
        tau_max: upper bound.
        constant: the best constant temperature on these rows.
        loss: robust loss at the predicted temperatures.
        loss_optimum: at the best temperature of every row.
        loss_constant: at the best constant.
        loss_same_mean: at the mean of the predicted temperatures, as a constant.
        gap: `loss - loss_optimum`; >= 0 while predictions stay within the bounds.
        gap_interval: of the gap.
        recovered: share of the optimum's gain over the best constant: 0 for that constant, 1 for the optimum, negative
            if worse than the constant; NaN if there is nothing to gain.
        recovered_interval: of that share.
        rank_correlation: Spearman's, of the predicted with the best temperatures; NaN where one side is constant.
        rank_correlation_interval: of that correlation.
        tau: the predicted temperatures.
        optimum: the best ones.
        confidence: level of the intervals.
    """

    view: str
    rows: int
    available: int
    outcomes: int
    rho: float
    tau_min: float
    tau_max: float
    constant: float
    loss: float
    loss_optimum: float
    loss_constant: float
    loss_same_mean: float
    gap: float
    gap_interval: Pair
    recovered: float
    recovered_interval: Pair
    rank_correlation: float
    rank_correlation_interval: Pair
    tau: TemperatureSpread
    optimum: TemperatureSpread
    confidence: float

    @property
    def recovered_by_mean(self) -> float:
        """Share recovered by the mean of the predictions as a constant, at most 0; the rest depends on the row."""
        return recovered_share(self.loss_same_mean, self.loss_constant, self.loss_optimum)

    def _heading(self) -> str:
        return (
            f"{self.view}: {self.rows:,} of {self.available:,} rows, m = {self.outcomes:,}, rho = {self.rho:g}, "
            f"tau from {self.tau_min:g} to {self.tau_max:g}"
        )

    def _lines(self) -> list[list[str]]:
        header = ["temperature", "robust loss", "gap", "recovered (%)", "τ mean (std)", TAU_TITLES[1]]
        lines = [[*header, "at a bound (%)"]]
        constant, optimum = self.loss_constant, self.loss_optimum
        for name, loss, tau in (
            ("best constant", constant, [f"{self.constant:.4g}", "", ""]),
            ("same mean, constant", self.loss_same_mean, [f"{self.tau.mean:.4g}", "", ""]),
            ("predicted", self.loss, self.tau._cells()),
            ("optimum", optimum, self.optimum._cells()),
        ):
            share = share_cell(recovered_share(loss, constant, optimum), constant - optimum)
            lines.append([name, f"{loss:.4f}", f"{loss - optimum:.4f}", share, *tau])
        return lines

    def __str__(self) -> str:
        gap = "gap {:.4f} [{:.4f}, {:.4f}]".format(self.gap, *self.gap_interval)
        shares = (100 * x for x in (self.recovered, *self.recovered_interval))
        share = "recovered {:.1f} % [{:.1f}, {:.1f}]".format(*shares)
        if share_cell(self.recovered, self.loss_constant - self.loss_optimum) == "–":
            share = "recovered –"
        correlation = self.rank_correlation, *self.rank_correlation_interval
        rank = "rank correlation {:.2f} [{:.2f}, {:.2f}]".format(*correlation)
        level = f"{100 * self.confidence:g} % bootstrap over rows"
        return f"{super().__str__()}\n\n{gap}, {share}, {rank} ({level})"


def amortisation_gap(
    objective: Objective,
    batches: Iterable[HostBatch],
    *,
    rows: int = 2000,
    seed: int = 0,
    tau_min: float | None = None,
    tau_max: float | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    progress: bool = False,
) -> dict[str, AmortisationGap]:
    r"""How near predicted temperatures come to the best one of every row, in the loss that they are trained on.

    With $F_i(\tau) = \tau (\log \frac1m \sum_j e^{h_{ij}/\tau} + \rho)$, the optimum
    $\tau_i^* = \arg\min F_i$ within the bounds and the best constant $\tau_c = \arg\min_\tau \bar F(\tau)$:

    $$\mathrm{gap} = \bar F(\tau_{\mathrm{net}}) - \bar F(\tau^*) \ge 0, \qquad
    \mathrm{recovered} = \frac{\bar F(\tau_c) - \bar F(\tau_{\mathrm{net}})}{\bar F(\tau_c) - \bar F(\tau^*)}.$$

    The constant, unlike a predictor, is chosen on the very rows that it is judged on: the share is conservative.

    The support of rows of classes and tokens is their own; that of rows of pairs is all *other* items of `batches`,
    however these are batched, as the loss estimates it in training: pass the whole data set of interest. Items of one
    group (false negatives) are no outcomes of each other; a group's number must mean the same in every batch.

    Data are read once. Scores exist a block of rows at a time; in memory are the embeddings of all items for pairs,
    and the sampled rows of a host that gives a score matrix. Modes, random numbers, memories and proposals are
    unchanged afterwards.

    Args:
        objective: whose losses are all `KLRobustLoss`, with any host and predictors.
        batches: arguments of the host, `(images, texts, index)` for example: a tensor, a tuple, or keyword arguments.
        rows: rows of each view, drawn at random without replacement from those of weight > 0; all if there are fewer.
        seed: of the sample, and of the bootstrap.
        tau_min: lower bound of the optimum and of the constant; by default that of each view's predictor.
        tau_max: upper bound; by default that of each view's predictor.
        resamples: bootstrap samples.
        confidence: level of the intervals.
        progress: show progress bars.

    Returns:
        One `AmortisationGap` for each view; printed, it is a table.

    Raises:
        TypeError: no Objective, another loss, a tensor or a generator in place of batches, or a host of pairs that
            gives score matrices (`hosts.TwoViews`).
        ValueError: bounds that do not form an interval (a constant predictor has none), no rows, rho >= log m.
        FloatingPointError: scores or temperatures that are not finite.

    Example:
        >>> import dro_temp as dt
        >>> host = dt.hosts.Classifier(torch.nn.Linear(6, 8), torch.nn.Linear(8, 10))
        >>> predictor = dt.OptimalTemperature(1.0, tau_min=0.01, tau_max=4.0)
        >>> objective = dt.Objective(host, predictor, dt.KLRobustLoss(rho=1.0))
        >>> batches = [(torch.randn(32, 6), torch.randint(10, (32,))) for _ in range(3)]
        >>> gap = amortisation_gap(objective, batches)["class"]
        >>> gap.rows, gap.outcomes, round(gap.recovered, 3)
        (96, 10, 1.0)

    Source: arXiv 2404.04575, equation 6, for $F_i$.
    """
    return GapLog(
        objective, batches, rows=rows, seed=seed, tau_min=tau_min, tau_max=tau_max, resamples=resamples,
        confidence=confidence, progress=progress,
    ).measure()  # fmt: skip


class GapLog:
    """Measures `amortisation_gap` at regular intervals of training, without side effects.

    Call `step` after each optimizer step. A run with the log is, bit for bit, the run without it, provided that the
    log's batches share no sampler or generator with training.

    Args:
        objective: as for `amortisation_gap`, as are the options that are not listed here.
        batches: as for `amortisation_gap`; a few thousand held-out rows, say. For pairs all of them are the support.
        every: steps between two measurements.
        rows: rows of each view; the same ones each time, if the batches are.

    Attributes:
        steps: optimizer steps so far.
        history: "step", and figures of each view, "image/gap" or "image/recovered_low": one per measurement, as JSON
            holds them, and as `plotting.training_curves` draws them.
        temperatures: pairs of a step and the sampled rows' temperatures at it, as `plotting.temperature_history` draws
            them.

    Raises:
        TypeError: as `amortisation_gap`.
        ValueError: a count below 1, or a confidence outside (0, 1).

    Example:
        >>> import dro_temp as dt
        >>> host = dt.hosts.Classifier(torch.nn.Linear(6, 8), torch.nn.Linear(8, 10))
        >>> objective = dt.Objective(host, dt.TempNet(8, tau_min=0.01, tau_max=4.0), dt.KLRobustLoss(rho=1.0))
        >>> optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(objective.param_groups(lr=1e-3)), objective)
        >>> inputs, labels = torch.randn(64, 6), torch.randint(10, (64,))
        >>> log = GapLog(objective, [(inputs, labels)], every=2, rows=32)
        >>> for _ in range(4):
        ...     objective(inputs, labels).loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     gaps = log.step()
        >>> log.history["step"], len(log.history["class/recovered"])
        ([2, 4], 2)
    """

    steps: int
    history: dict[str, list[float]]
    temperatures: list[tuple[int, dict[str, Tensor]]]

    def __init__(
        self,
        objective: Objective,
        batches: Iterable[HostBatch],
        *,
        every: int = 500,
        rows: int = 500,
        seed: int = 0,
        tau_min: float | None = None,
        tau_max: float | None = None,
        resamples: int = 200,
        confidence: float = 0.95,
        progress: bool = False,
    ) -> None:
        check_inside("confidence", confidence, 0.0, 1.0)
        instead = "Pass the Objective itself, model.module of DistributedDataParallel, say."
        check_kind("objective", objective, Objective, instead)
        for view, loss in objective.losses.items():
            if not isinstance(loss, KLRobustLoss):
                raise TypeError(
                    f"expected a KLRobustLoss in view {view!r}, whose radius rho defines the best temperature of a "
                    f"row, received {type(loss).__name__}. Pass dt.Objective(objective.host, predictor, "
                    "dt.KLRobustLoss(rho=1.0)) to measure the predictor against that loss."
                )
        with without_side_effects(objective):  # an iterator of a data loader draws a random number
            check_batches(batches=batches)
        self.objective, self.batches, self.every = objective, batches, check_count("every", every)
        self._rows, self._seed = check_count("rows", rows), check_count("seed", seed, 0)
        self._tau_min, self._tau_max = tau_min, tau_max
        self._resamples, self._confidence = check_count("resamples", resamples), confidence
        self._progress = progress
        self.load_state_dict({"steps": 0, "history": {}, "temperatures": []})

    def step(self) -> dict[str, AmortisationGap] | None:
        """Count an optimizer step; the gaps after it where it is time to measure, else None."""
        self.steps += 1
        return self.measure() if self.steps % self.every == 0 else None

    def measure(self) -> dict[str, AmortisationGap]:
        """Measure and record the gaps now, for example before training or after it."""
        samples, bounds, objective = {}, {}, self.objective
        for view in objective.host.views:
            predictor = objective.predictors[view]
            assert isinstance(predictor, TemperaturePredictor)
            low = predictor.tau_min if self._tau_min is None else self._tau_min
            high = predictor.tau_max if self._tau_max is None else self._tau_max
            if low == high == predictor.tau_min:
                raise ValueError(
                    f"expected bounds to search, received a {type(predictor).__name__} at {low} in view {view!r}, "
                    "which has none. Pass tau_min=0.01, tau_max=1.0, or those of the predictor that it is compared "
                    "with."
                )
            check_bounds(low, high)
            bounds[view] = low, high
            samples[view] = RowSample(view, predictor, self._rows, self._seed)
        with without_side_effects(objective):
            for batch in with_progress(self.batches, "rows" if self._progress else None):
                by_view = rows_of(objective.host, batch)
                for view, sample in samples.items():
                    sample.offer(objective.rows_to_predict(view, by_view))
            measured = {view: self._gap(sample, bounds[view]) for view, sample in samples.items()}
        gaps = {view: gap for view, (gap, _) in measured.items()}
        figures: dict[str, float] = {"step": self.steps}
        for view, gap in gaps.items():
            for name in ("loss", "loss_optimum", "loss_constant", "loss_same_mean", "constant"):
                figures[f"{view}/{name}"] = getattr(gap, name)
            for prefix in ("tau", "optimum"):
                for name in ("mean", "std", "at_bound"):
                    figures[f"{view}/{prefix}_{name}"] = getattr(getattr(gap, prefix), name)
            for name in _WITH_INTERVALS:
                low, high = getattr(gap, f"{name}_interval")
                own = {"": getattr(gap, name), "_low": low, "_high": high}
                figures |= {f"{view}/{name}{end}": value for end, value in own.items()}
        for name, value in figures.items():
            self.history.setdefault(name, []).append(value)
        self.temperatures.append((self.steps, {view: tau.float() for view, (_, tau) in measured.items()}))
        return gaps

    def state_dict(self) -> dict[str, Any]:
        """Steps and measurements so far; `torch.load(weights_only=True)` can read them."""
        return copy.deepcopy({name: getattr(self, name) for name in ("steps", "history", "temperatures")})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        state = copy.deepcopy(state)
        self.steps, self.history, self.temperatures = state["steps"], state["history"], state["temperatures"]

    def _gap(self, sample: RowSample, bounds: Pair) -> tuple[AmortisationGap, PerRow]:
        view, (rows, tau), loss = sample.view, sample.drawn(), self.objective.losses[sample.view]
        assert isinstance(loss, KLRobustLoss)
        rho, m = loss.rho, min(_fewest_outcomes(r) for r in rows)
        if m == 0 or 0 < rho >= math.log(m):
            more = "" if rows[0].target_in_support else "more data, all that the loss was trained on, or "
            raise ValueError(
                f"expected rho < log m in view {view!r}, received rho={rho} and m={m} outcomes in a row's support, log "
                f"m = {math.log(max(m, 1)):.4g}: every temperature would collapse to tau_min. Pass {more}a smaller rho."
            )
        # A little wider where float32 rounds the bounds so: a prediction at its bound is not outside.
        low, high = torch.tensor(bounds).tolist()
        wider = min(low, bounds[0]), max(high, bounds[1])
        title = f"best temperatures, {view}" if self._progress else None
        losses = robust_losses(view, rows, tau, rho, wider, title)
        gap = AmortisationGap(
            view=view, rows=len(losses.tau), available=sample.available, outcomes=m,
            rho=rho, tau_min=bounds[0], tau_max=bounds[1], constant=min(max(losses.constant, bounds[0]), bounds[1]),
            **self._means(losses), confidence=self._confidence,
            tau=_spread(losses, losses.tau, bounds), optimum=_spread(losses, losses.optimum, bounds),
        )  # fmt: skip
        return gap, losses.tau

    def _means(self, losses: RobustLosses) -> dict[str, Any]:
        """Mean losses; gap, share recovered and rank correlation with intervals over rows, NaN where undefined."""
        columns = torch.stack([losses.at[name] for name in ("loss", "loss_constant", "loss_optimum")], 1)
        # In the float32 of predictors, in which a constant is constant.
        ranks = places(check_tau(losses.tau.float())), places(check_tau(losses.optimum.float()))

        def figures(times: Tensor) -> list[float]:
            """Of rows that are counted so many times, [n]."""
            weight = losses.weight * times
            loss, constant, optimum = (weight @ columns / weight.sum()).tolist()
            correlation = float(rank_correlation(*ranks, weight))
            return [loss - optimum, recovered_share(loss, constant, optimum), correlation]

        rng, n = generator(self._seed), len(losses.tau)
        whole = figures(torch.ones(n, dtype=torch.float64))
        drawn = torch.tensor(
            [figures(times_drawn(n, rng)) for _ in range(self._resamples)], dtype=torch.float64
        )
        drawn += 0.0 * torch.tensor(whole)  # a figure that is undefined for the rows has no interval
        means: dict[str, Any] = {name: losses.mean(x) for name, x in losses.at.items()}
        for name, value, column in zip(_WITH_INTERVALS, whole, drawn.unbind(1), strict=True):
            means |= {name: value, f"{name}_interval": interval(column, self._confidence)}
        return means


def _fewest_outcomes(rows: Rows) -> int:
    """Of a row that counts; with groups they differ."""
    sizes, counts = rows.support_sizes, rows.valid
    return rows.support_size if sizes is None or not bool(counts.any()) else int(sizes[counts].amin())


def _spread(losses: RobustLosses, tau: PerRow, bounds: Pair) -> TemperatureSpread:
    mean = losses.mean(tau)
    value, order = tau.sort()
    below = losses.weight[order].cumsum(0)
    # The lowest temperature that so much of the weight does not exceed.
    wanted = torch.tensor(SHARES, dtype=torch.float64) * below[-1] * (1 - 1e-12)
    place = torch.searchsorted(below, wanted).clamp(max=len(tau) - 1)
    near = (tau <= bounds[0] * 1.01) | (tau >= bounds[1] * 0.99)
    std = losses.mean((tau - mean).square()) ** 0.5
    quantiles = dict(zip(SHARES, value[place].tolist(), strict=True))
    return TemperatureSpread(mean, std, quantiles, losses.mean(near.double()))
