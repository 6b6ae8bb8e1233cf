"""Modules in evaluation mode during a measurement."""

from collections.abc import Iterator
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
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        # Only modes that differ are written: other threads may be running these modules.
        for part in (part for part, training in before if training):
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, training in before:
            if part.training is not training:
                part.training = training
