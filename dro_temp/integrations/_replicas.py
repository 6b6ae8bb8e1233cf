"""Parameters that train on several processes, outside of the module that DistributedDataParallel wraps."""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from dro_temp import distributed


class Replicas:
    """Keeps the processes' copies of a module's parameters alike.

    They start as those of the first process, and in every backward each gradient becomes the mean over processes,
    as DistributedDataParallel does it. In backward, not at the step: a gradient scaler looks for overflow between
    the two, and must find the same everywhere.

    Args:
        passes: number of backwards of the same rows that go into one step; their mean counts.
    """

    def __init__(self, passes: int) -> None:
        self._passes = passes
        self._watched: list[nn.Parameter] = []
        self._alike = False

    def watch(self, module: nn.Module) -> None:
        """Before each forward that trains; all processes call it together."""
        if distributed.world_size() > 1 and not self._alike:
            for parameter in module.parameters():
                dist.broadcast(parameter.data, 0)
            self._alike = True
        known = {id(p) for p in self._watched}
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in known:
                parameter.register_hook(self._mean)  # type: ignore[no-untyped-call]
                self._watched.append(parameter)

    def _mean(self, gradient: Tensor) -> Tensor:
        share = distributed.world_size() * self._passes
        return gradient if share == 1 else distributed.sum_over_processes(gradient) / share

    def __getstate__(self) -> dict[str, Any]:
        """Copies have parameters of their own, without hooks."""
        return {**self.__dict__, "_watched": []}


def zero_gradient(*parameters: Tensor | None) -> Tensor | float:
    """Zero, through which each gets a gradient of zero: DistributedDataParallel waits for a gradient of each."""
    live = [p for p in parameters if p is not None and p.requires_grad]
    return sum(0.0 * p.sum() for p in live)
