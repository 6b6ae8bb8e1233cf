"""Modules in evaluation mode during a measurement."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode, without gradient; each part's mode is restored afterwards.

    Example:
        >>> dropout = torch.nn.Dropout()
        >>> with evaluating(dropout):
        ...     dropout(torch.ones(2))
        tensor([1., 1.])
        >>> dropout.training
        True
    """
    # Only modes that differ are written: other threads may be running these modules.
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        _set_modes((part, False) for part, _ in before)
        with torch.no_grad():
            yield
    finally:
        _set_modes(before)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for part, training in modes:
        if part.training is not training:
            part.training = training
