"""Learning rates of temperatures."""

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dro_temp._checks import check_callable, check_count, check_kind


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
        return tau_factor(step) * min(1.0, max(0.0, (step - steps + 1) / ramp))

    return LambdaLR(optimizer, [held if name == "temperature" else schedule for name in names])
