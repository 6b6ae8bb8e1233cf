"""Attributes of modules, replaced for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def replaced(module: Any, **attributes: Any) -> Iterator[None]:
    """A module with other attributes inside the block, and its own ones after it, also after an error."""
    before = {name: getattr(module, name) for name in attributes}
    try:
        vars(module).update(attributes)
        yield
    finally:
        vars(module).update(before)


class Overlay:
    """Reads like a module with some attributes replaced; the module itself does not change."""

    def __init__(self, module: Any, **attributes: Any) -> None:
        self._module = module
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[float]:
    """For each k, how many rows have their class among their k highest scores.

    In place of open_clip 3.3's own, which fails from NumPy 2.4 on: it makes a number of an array of one.
    """
    hits = output.topk(max(topk)).indices == target[:, None]
    return [float(hits[:, :k].sum()) for k in topk]
