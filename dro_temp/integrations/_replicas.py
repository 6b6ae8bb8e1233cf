"""Parameters that train on several processes, outside the module that DistributedDataParallel wraps."""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from dro_temp import distributed


class Replicas:
    """Keeps the processes' copies of a module's parameters equal.

    They start as those of the first process, and each gradient becomes the mean over processes, as in
    DistributedDataParallel. In backward, not at the step: a gradient scaler looks for overflow between the two, and
    must find the same everywhere. Of several `backwards` of the same rows that go into one step, the mean counts.
    """

    def __init__(self, backwards: int = 1) -> None:
        self._backwards = backwards
        self._hooked: set[nn.Parameter] = set()
        self._equal = False

    def synchronise(self, module: nn.Module) -> None:
        """Before each forward that trains; all processes call it together."""
        if distributed.world_size() > 1 and not self._equal:
            for parameter in module.parameters():
                dist.broadcast(parameter.data, 0)
            self._equal = True
        for parameter in module.parameters():
            if parameter.requires_grad and parameter not in self._hooked:
                parameter.register_hook(self._mean)  # type: ignore[no-untyped-call]
                self._hooked.add(parameter)

    def _mean(self, gradient: Tensor) -> Tensor:
        share = distributed.world_size() * self._backwards
        return gradient if share == 1 else distributed.sum_over_processes(gradient) / share

    def __getstate__(self) -> dict[str, Any]:
        """Copies have parameters of their own, without hooks."""
        return {**self.__dict__, "_hooked": set()}
