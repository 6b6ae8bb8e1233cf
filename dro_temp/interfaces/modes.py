"""Modules in evaluation mode, for as long as something is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode, without gradient; each part is then put back as it was.

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
        for part, _ in before:
            part.training = False
        with torch.no_grad():
            yield
    finally:
        for part, training in before:
            part.training = training
