"""Measuring in the middle of something else, without a trace."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dro_temp._modes import evaluating
from dro_temp.interfaces import HostAdapter


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode on this process alone; then modes and random numbers are as if nothing had happened.

    A data loader draws a number each time that it is swept, and data may be augmented at random: torch's, Python's
    and NumPy's generators are all put back.

    Args:
        module: what is measured.
    """
    hosts = [part for part in module.modules() if isinstance(part, HostAdapter)]
    before = [host.objective_trains for host in hosts]
    numpy = sys.modules.get("numpy")  # who has not imported it draws nothing from it
    state = random.getstate(), None if numpy is None else numpy.random.get_state()
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)), evaluating(module):
            for host in hosts:
                host.objective_trains = False  # else it waits for the rows of other processes
            yield
    finally:
        random.setstate(state[0])
        if numpy is not None:
            numpy.random.set_state(state[1])
        for host, trains in zip(hosts, before, strict=True):
            host.objective_trains = trains
