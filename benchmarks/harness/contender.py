"""What takes part in a benchmark, and why it may have to stay out."""

import os
import shutil
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, TypeAlias

from torch import Tensor

#: One forward and backward; returns the loss, if there is one, so that contenders can be seen to agree.
Step: TypeAlias = Callable[[], Tensor | None]
#: A reason to stay out, or None.
Need: TypeAlias = Callable[[Namespace], str | None]


class Problem(ABC):
    """The inputs that all contenders share."""

    @abstractmethod
    def leaves(self) -> list[Tensor]:
        """What a step leaves gradients in."""

    def clear(self) -> None:
        """Forget gradients; a step begins with it, as a training loop does."""
        for leaf in self.leaves():
            leaf.grad = None

    def gradient_bytes(self) -> int:
        """What no implementation can avoid: the gradients that the last step left."""
        return sum(leaf.grad.nbytes for leaf in self.leaves() if leaf.grad is not None)


@dataclass(frozen=True)
class Contender:
    """One line of a table.

    Args:
        name: what `--only` takes.
        make: from a problem to a step; whatever can be prepared once is prepared here. It goes to a process of
            its own for the memory: a module's function, or a `partial` of one.
        about: one line for `--help`.
        needs: reasons to stay out, asked in turn.
        package: what `pip install` calls it, if it is not ours.
        module: what Python calls it.
        compiled: True if the first step compiles, so that its memory says nothing.
        memory: False if its memory is of no interest.
    """

    name: str
    make: Callable[[Any], Step]
    about: str
    needs: tuple[Need, ...] = ()
    package: str | None = None
    module: str | None = None
    compiled: bool = False
    memory: bool = True

    def why_not(self, options: Namespace) -> str | None:
        """Why it does not take part, or None."""
        reason = next((reason for need in self.needs if (reason := need(options))), None)
        if reason is None and self.module is not None and find_spec(self.module) is None:
            return f"not installed; run: pip install {self.package}"
        return reason

    @property
    def installed(self) -> str | None:
        """Version of its package."""
        try:
            return None if self.package is None else version(self.package)
        except PackageNotFoundError:
            return None


def cuda(options: Namespace) -> str | None:
    """Runs on NVIDIA's GPUs only."""
    return None if options.device == "cuda" else "runs on a GPU only; pass --device cuda"


def compiler(options: Namespace) -> str | None:
    """`torch.compile` builds its kernels with the system's compiler."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    if any(name and shutil.which(name) for name in names):
        return None
    return "no C++ compiler for torch.compile; install g++, or set CXX"
