"""The optimizer whose steps also commit the objective's memory, and the learning rate of temperatures."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dro_temp._checks import check_callable, check_count, check_kind
from dro_temp.estimators import LogMovingAverage
from dro_temp.estimators.moving_average import Schedule, checked_gamma
from dro_temp.state import Committable

__all__ = ["CompositionalOptimizer", "hold_temperatures"]

#: Names of per-entry state in torch's optimizers.
_MOMENTS = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"}
    | {"acc_delta", "sum", "prev", "step_size", "ax"}
)


class CompositionalOptimizer(Optimizer):
    r"""Steps a base optimizer, then commits the proposals of the objective's forward.

    The robust loss is a nonlinear function of an expectation, so its gradient needs a running estimate of that
    expectation. Forward reads the estimate and proposes a new one, which this optimizer writes once a step was taken.
    If a gradient scaler skips a step, the proposals are dropped with the gradients, by `zero_grad` of this optimizer or
    of the objective.

    It *is* a `torch.optim.Optimizer`: it shares `param_groups`, `state` and `state_dict` with the base, so
    learning-rate schedulers, gradient scalers and accelerate treat it as one. The estimators' memory is saved
    with the objective: save `objective.state_dict()` and `optimizer.state_dict()`.

    Args:
        base: any torch optimizer over the objective's parameters.
        objective: the objective whose memory is committed, also wrapped (DistributedDataParallel); or a risk by itself,
            such as `TiltedRisk(-1.0, estimator=LogMovingAverage(1))` over the losses of any model.
        gamma: inner learning rate, or a function from the number of steps to it, for all of the objective's
            `LogMovingAverage` estimators; None keeps theirs.

    Raises:
        TypeError: `base` is not a plain torch optimizer, or `objective` neither an Objective nor a StandaloneRisk.
        ValueError: `base` trains none of the objective's parameters, or gamma is outside (0, 1], or the
            objective has no estimator that gamma could apply to.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> loss = {v: dt.KLRobustLoss(1.0, estimator=dt.LogMovingAverage(100)) for v in host.views}
        >>> objective = dt.Objective(host, dt.ConstantTemperature(0.1), loss)
        >>> optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(objective.param_groups(lr=1e-3)), objective)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()
        >>> optimizer.step()
        >>> int(objective.losses["image"].estimator.log_u.isfinite().sum())
        8

    Source: arXiv 2404.04575, algorithm 1; arXiv 2202.12387 (SogCLR).
    """

    base: Optimizer
    objective: Committable

    def __init__(
        self, base: Optimizer, objective: nn.Module, *, gamma: float | Schedule | None = None
    ) -> None:
        if not isinstance(base, Optimizer):
            raise TypeError(
                f"expected a torch optimizer as the base, received {type(base).__name__}. Write "
                "CompositionalOptimizer(torch.optim.AdamW(objective.param_groups(lr=...)), objective)."
            )
        if isinstance(base, CompositionalOptimizer):
            raise TypeError(
                "expected a plain torch optimizer as the base, received a CompositionalOptimizer. Put several hosts "
                "into one Objective, or train each objective with an optimizer of its own."
            )
        # Optimizer.__init__ would create a second list of parameter groups; this is the rest of it.
        super().__setstate__({"base": base, "objective": _unwrapped(objective), "defaults": base.defaults})
        ours = {id(p) for p in self.objective.parameters()}
        elsewhere = self.objective.trains_others and not ours
        if not (elsewhere or any(id(p) in ours for group in base.param_groups for p in group["params"])):
            raise ValueError(
                "expected a base optimizer over the objective's parameters, received one that trains none of "
                "them. Build it from objective.param_groups(lr=..., tau_lr=...), or, for a risk by itself, from "
                "[*model.parameters(), *risk.parameters()]."
            )
        if gamma is None:
            return
        gamma = gamma if callable(gamma) else checked_gamma(gamma)
        estimators = [m for m in self.objective.memory_modules() if isinstance(m, LogMovingAverage)]
        if not estimators:
            raise ValueError(
                f"expected an objective with a LogMovingAverage for gamma={gamma}, received none. Pass "
                "KLRobustLoss(rho, estimator=LogMovingAverage(len(dataset))), or leave gamma out."
            )
        for estimator in estimators:
            estimator.gamma = gamma

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's own groups."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's own state."""
        return self.base.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base's state; the memory is part of `objective.state_dict()`."""
        for before in self._optimizer_state_dict_pre_hooks.values():  # type: ignore[attr-defined]
            before(self)
        state: dict[str, Any] = self.base.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():  # type: ignore[attr-defined]
            state = after(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base's state and drop earlier proposals."""
        if isinstance(state_dict, Mapping):
            state_dict = dict(state_dict)
            for before in self._optimizer_load_state_dict_pre_hooks.values():  # type: ignore[attr-defined]
                state_dict = before(self, state_dict) or state_dict
        groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
        ours = [len(group["params"]) for group in self.base.param_groups]
        theirs = "something else" if groups is None else [len(group["params"]) for group in groups]
        if theirs != ours:
            raise ValueError(
                f"expected the state of an optimizer over {ours} parameters by group, received {theirs}. Load what "
                "state_dict() returned for the same objective.param_groups(...)."
            )
        self.base.load_state_dict(state_dict)
        self.objective.discard()
        for after in self._optimizer_load_state_dict_post_hooks.values():  # type: ignore[attr-defined]
            after(self)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and drop their proposals if no step was taken.

        This handles a step that a gradient scaler skipped. Proposals of a forward that is still to be backpropagated
        stay, so that zero_grad may be called anywhere in the loop.
        """
        self.objective.discard_backpropagated()  # first: it looks at the gradients
        self.base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take the base's step and commit.

        Args:
            closure: re-evaluates the objective, for optimizers that need it.

        Raises:
            RuntimeError: the objective has memory, and nothing was proposed since the last step.
            ValueError: a table of the objective has grown, and the base's moments of it have not.
        """
        if closure is None and self._only_makes_state():
            self.base.step()
            return None
        self._refuse_old_moments()
        if closure is None:
            self._refuse_without_proposals()
            loss: float | None = self.base.step()
        else:
            loss = self.base.step(self.objective.proposing_once(closure))
        self.objective.commit()
        return loss

    def _only_makes_state(self) -> bool:
        """Whether this is the step by which torch.distributed.checkpoint initialises the state of a fresh optimizer.

        Its learning rate is 0 and nothing changes: nothing is committed, and a forward that is still to be
        backpropagated keeps its proposals.
        """
        fresh = not self.base.state and not self.objective.backpropagated
        return fresh and all(float(group.get("lr", 1.0)) == 0.0 for group in self.base.param_groups)

    def _refuse_without_proposals(self) -> None:
        memory = self.objective.memory_modules()
        silent = [type(m).__name__ for m in memory if m.expects_proposals and not m.pending]
        if silent:
            raise RuntimeError(
                f"expected a forward and backward of the objective in training mode before each step, received "
                f"nothing to commit for {silent[0]}. Call objective.train() after validation and backward() on "
                "output.loss (autograd.grad over some parameters does not reach a table of individual temperatures); "
                "of several optimizers over one objective, wrap only the one that steps last."
            )

    def _refuse_old_moments(self) -> None:
        for table in (p for staged in self.objective.memory_modules() for p in staged.memory_parameters()):
            # Some optimizers store other state under the first parameter (LBFGS): only names of moments count.
            for name, x in self.base.state.get(table, {}).items():
                if name in _MOMENTS and isinstance(x, Tensor) and x.shape != table.shape:
                    raise ValueError(
                        f"expected the optimizer's {name} of a table of {len(table)} samples, received that of "
                        f"{len(x)}. Load the optimizer's state before the table is given another size, and pass the "
                        f"optimizer: objective.resize({len(table)}, optimizer=optimizer)."
                    )

    def __getstate__(self) -> dict[str, Any]:
        # Copied and pickled as a whole: base and objective keep sharing their parameters.
        return {"base": self.base, "objective": self.objective, "defaults": self.defaults}

    def __repr__(self) -> str:
        return f"CompositionalOptimizer({self.base!r})"


def _unwrapped(objective: nn.Module) -> Committable:
    inner: Any = objective
    # DistributedDataParallel and its like keep the module as `module`, torch.compile as `_orig_mod`.
    while not isinstance(inner, Committable) and (hasattr(inner, "module") or hasattr(inner, "_orig_mod")):
        inner = inner.module if hasattr(inner, "module") else inner._orig_mod
    if not isinstance(inner, Committable):
        raise TypeError(
            f"expected an Objective or a StandaloneRisk, received {type(objective).__name__}. Wrap a model first, "
            "Objective(host, predictor, loss); derive a risk that remembers from dro_temp.risks.StandaloneRisk. One "
            "without memory needs no CompositionalOptimizer."
        )
    return inner


def hold_temperatures(
    optimizer: Optimizer,
    *,
    steps: int,
    ramp: int | None = None,
    schedule: Callable[[int], float] = lambda step: 1.0,
    tau_schedule: Callable[[int], float] | None = None,
) -> LambdaLR:
    r"""A scheduler under which temperatures stay where they started for the first `steps` steps.

    At the start of training all scores of a row are nearly equal, and the temperature that is optimal for such a row
    is far too low later: a predictor that follows the optimum falls to the lower bound, the encoders adapt to that, and
    recovery takes epochs. Hold temperatures for two or three tenths of the training.

    Args:
        optimizer: over `objective.param_groups(...)`; the group named "temperature" is held.
        steps: for how many optimizer steps, >= 1.
        ramp: steps over which the group's rate then rises to its full value; a tenth of `steps` if None.
        schedule: factor of all learning rates by step, for example a cosine.
        tau_schedule: the factor for temperatures; `schedule` if None. They follow a model that still changes: a rate
            that stays high until the last third comes closer to the optimum than a cosine does.

    Returns:
        A torch scheduler; call its `step()` after each step of the optimizer.

    Raises:
        ValueError: no group of that name, or a count below one.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.tempnet(host, num_samples=100, width=4, rho=2.0)
        >>> optimizer = torch.optim.AdamW(objective.param_groups(lr=1e-3))
        >>> scheduler = dt.hold_temperatures(optimizer, steps=200)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.001, 0.0]

    Source: this library; docs, "Training temperatures".
    """
    instead = "Pass torch.optim.AdamW(objective.param_groups(lr=...)), say."
    check_kind("optimizer", optimizer, Optimizer, instead)
    tau_factor = schedule if tau_schedule is None else tau_schedule
    check_callable("schedule", schedule)
    check_callable("tau_schedule", tau_factor)
    check_count("steps", steps)
    ramp = max(1, steps // 10) if ramp is None else check_count("ramp", ramp)
    names = [group.get("name") for group in optimizer.param_groups]
    if "temperature" not in names:
        raise ValueError(
            f'expected an optimizer with a group named "temperature", received groups {names}. Build it from '
            "objective.param_groups(lr=..., tau_lr=...), with a predictor that trains."
        )

    def held(step: int) -> float:
        return tau_factor(step) * hold_factor(step, steps, ramp)

    return LambdaLR(optimizer, [held if name == "temperature" else schedule for name in names])


def hold_factor(step: int, steps: int, ramp: int) -> float:
    """0 for so many steps, then up to 1 over the ramp."""
    return min(1.0, max(0.0, (step - steps + 1) / ramp))
