"""The amortisation gap over training."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dro_temp._checks import check_count
from dro_temp.evaluation._batches import HostBatch, check_batches, without_side_effects
from dro_temp.evaluation.amortisation import AmortisationGap, checked_radii, measured
from dro_temp.objective import Objective


class GapLog:
    """Measures `amortisation_gap` at regular intervals of training, without side effects.

    Call `step` after each optimizer step. A run with the log is, bit for bit, the run without it, provided that the
    log's batches share no sampler or generator with training.

    Args:
        objective: as for `amortisation_gap`.
        batches: as for `amortisation_gap`; a few thousand held-out rows, say. For pairs all of them are the support.
        every: steps between two measurements.
        rows: rows of each view; the same ones each time, if the batches are.
        seed: of the sample, and of the bootstrap.
        tau_min: lower bound of the optimum; by default that of each view's predictor.
        tau_max: upper bound.
        resamples: bootstrap samples.
        confidence: level of the intervals.

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
    ) -> None:
        checked_radii(objective, rows, seed, resamples, confidence)
        with without_side_effects(objective):
            check_batches("batches", batches)
        self.objective, self.batches, self.every = objective, batches, check_count("every", every)
        self._options = rows, seed, tau_min, tau_max, resamples, confidence
        self.load_state_dict({"steps": 0, "history": {}, "temperatures": []})

    def step(self) -> dict[str, AmortisationGap] | None:
        """Count an optimizer step; the gaps after it where it is time to measure, else None."""
        self.steps += 1
        return self.measure() if self.steps % self.every == 0 else None

    def measure(self) -> dict[str, AmortisationGap]:
        """Measure and record the gaps now, for example before training or after it."""
        results = measured(self.objective, self.batches, *self._options)
        figures: dict[str, float] = {"step": self.steps}
        for view, (gap, _) in results.items():
            figures |= {f"{view}/{name}": value for name, value in _figures(gap).items()}
        for name, value in figures.items():
            self.history.setdefault(name, []).append(value)
        self.temperatures.append((self.steps, {view: tau.float() for view, (_, tau) in results.items()}))
        return {view: gap for view, (gap, _) in results.items()}

    def state_dict(self) -> dict[str, Any]:
        """Steps and measurements so far; `torch.load(weights_only=True)` can read them."""
        return copy.deepcopy({name: getattr(self, name) for name in ("steps", "history", "temperatures")})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        state = copy.deepcopy(state)
        self.steps, self.history, self.temperatures = state["steps"], state["history"], state["temperatures"]


def _figures(gap: AmortisationGap) -> dict[str, float]:
    names = ("loss", "loss_optimum", "loss_constant", "loss_same_mean", "constant")
    figures = {name: getattr(gap, name) for name in names}
    for prefix, spread in (("tau", gap.tau), ("optimum", gap.optimum)):
        figures |= {f"{prefix}_{name}": getattr(spread, name) for name in ("mean", "std", "at_bound")}
    for name in ("gap", "recovered", "rank_correlation"):
        low, high = getattr(gap, f"{name}_interval")
        figures |= {name: getattr(gap, name), f"{name}_low": low, f"{name}_high": high}
    return figures
