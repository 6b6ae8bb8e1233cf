"""Which of an optimizer's groups open_clip's schedules set."""

from typing import Any

from torch.optim import Optimizer

TEMPERATURE = "temperature"  # name of the group


class ModelGroups:
    """An optimizer as open_clip's schedules see it, without the temperatures' group.

    They set one learning rate for all groups of what they are given. Given this, they leave `tau_lr` alone.

    Args:
        optimizer: what `OpenClipLoss.optimizer` returned.

    Example:
        >>> import dro_temp as dt
        >>> from dro_temp.integrations.open_clip import OpenClipLoss
        >>> loss = OpenClipLoss(dt.LearnableTemperature(0.07), dt.KLRobustLoss(1.0))
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = loss.optimizer(torch.optim.AdamW(model.parameters(), lr=1e-3), tau_lr=1e-4)
        >>> from open_clip_train.scheduler import const_lr
        >>> const_lr(ModelGroups(optimizer), 5e-4, 0, 100)(step=0)
        0.0005
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.0005, 0.0001]
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The model's groups of the moment: loading an optimizer's state makes others."""
        return [group for group in self.optimizer.param_groups if group.get("name") != TEMPERATURE]
