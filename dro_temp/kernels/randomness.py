"""The same random numbers twice: a second sweep must drop the same units as the first."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Randomness:
    """The state of the generators at some moment.

    Args:
        device: where the random numbers are drawn, beside the processor.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda: Tensor | None = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, random numbers are those that followed that moment; outside nothing has changed."""
        devices = [] if self._cuda is None else [self._device]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield
