"""The amortisation gap over training."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dro_temp._checks import check_count
from dro_temp.evaluation._batches import HostBatch, check_batches
from dro_temp.evaluation._sampled_losses import check_objective, sampled_losses
from dro_temp.evaluation._statistics import check_confidence
from dro_temp.evaluation._undisturbed import undisturbed
from dro_temp.evaluation.gap_report import AmortisationGap
from dro_temp.objective import Objective


class GapLog:
    """Measures `amortisation_gap` every so many steps of training, and leaves no trace in it.

    Call `step` after each optimizer step. A run with the log is, bit for bit, the run without it: random numbers,
    modes, gradients, memories and proposals are put back. Only what is outside the objective can be disturbed: give the
    log batches of its own, whose sampler and generator training does not share.

    Args:
        objective: as for `amortisation_gap`.
        batches: as for `amortisation_gap`; a few thousand held-out rows, say. For pairs all of them are the support.
        every: steps between two measurements.
        rows: rows of each view; the same ones each time, where the batches are the same.
        seed: of the drawing, and of the resampling.
        tau_min: lower bound of the optimum; that of each view's predictor if None.
        tau_max: upper bound.
        resamples: bootstrap samples.
        confidence: level of the intervals.

    Raises:
        TypeError: as `amortisation_gap`.
        ValueError: a count below 1.

    Example:
        >>> import torch, dro_temp as dt
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
        check_objective(objective)
        with undisturbed(objective):
            check_batches("batches", batches)
        check_confidence(confidence)
        self.objective, self.batches, self.every = objective, batches, check_count("every", every)
        self.seed, self.confidence = check_count("seed", seed, 0), confidence
        self.resamples = check_count("resamples", resamples)
        self.rows, self.tau_min, self.tau_max = check_count("rows", rows), tau_min, tau_max
        #: Optimizer steps that were taken.
        self.steps = 0
        #: "step", and numbers of each view, "image/gap" or "image/recovered_low": one per measurement, as JSON holds
        #: them, and as `plotting.curves` draws them.
        self.history: dict[str, list[float]] = {}
        #: Pairs of a step and the sampled rows' temperatures at it, as `plotting.temperature_history` draws them.
        self.temperatures: list[tuple[int, dict[str, Tensor]]] = []

    def step(self) -> dict[str, AmortisationGap] | None:
        """A step was taken: what was measured after it, or None where it is not yet time."""
        self.steps += 1
        return self.measure() if self.steps % self.every == 0 else None

    def measure(self) -> dict[str, AmortisationGap]:
        """Measure and remember it now: before training, say, or after it."""
        found = sampled_losses(
            self.objective,
            self.batches,
            rows=self.rows,
            seed=self.seed,
            tau_min=self.tau_min,
            tau_max=self.tau_max,
        )
        gaps = {view: s.gap(self.resamples, self.confidence, self.seed) for view, s in found.items()}
        self._note("step", self.steps)
        for view, gap in gaps.items():
            for name, value in _numbers(gap).items():
                self._note(f"{view}/{name}", value)
        self.temperatures.append((self.steps, {view: s.losses.tau.float() for view, s in found.items()}))
        return gaps

    def _note(self, name: str, value: float) -> None:
        self.history.setdefault(name, []).append(value)

    def state_dict(self) -> dict[str, Any]:
        """Steps and measurements so far, as `torch.save` holds them and `torch.load(weights_only=True)` reads them."""
        return {
            "steps": self.steps,
            "history": {name: list(values) for name, values in self.history.items()},
            "temperatures": [(step, dict(tau)) for step, tau in self.temperatures],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where that state was taken."""
        self.steps = int(state["steps"])
        self.history = {name: list(values) for name, values in state["history"].items()}
        self.temperatures = [(step, dict(tau)) for step, tau in state["temperatures"]]


def _numbers(gap: AmortisationGap) -> dict[str, float]:
    numbers = {
        "loss": gap.loss,
        "loss_optimum": gap.loss_optimum,
        "loss_constant": gap.loss_constant,
        "loss_same_mean": gap.loss_same_mean,
        "constant": gap.constant,
        "tau_mean": gap.tau.mean,
        "tau_std": gap.tau.std,
        "tau_at_bound": gap.tau.at_bound,
        "optimum_mean": gap.optimum.mean,
        "optimum_std": gap.optimum.std,
        "optimum_at_bound": gap.optimum.at_bound,
    }
    for name in ("gap", "recovered", "rank_correlation"):
        low, high = getattr(gap, f"{name}_interval")
        numbers |= {name: getattr(gap, name), f"{name}_low": low, f"{name}_high": high}
    return numbers
