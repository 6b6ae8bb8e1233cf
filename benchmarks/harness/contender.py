"""What a benchmark compares, and what may prevent a contender from running."""

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

#: One forward and backward; returns the loss, if any, so that contenders can be checked against each other.
Step: TypeAlias = Callable[[], Tensor | None]
#: Why a contender cannot run, or None.
Need: TypeAlias = Callable[[Namespace], str | None]


class Problem(ABC):
    """The inputs that all contenders share."""

    @abstractmethod
    def leaves(self) -> list[Tensor]:
        """Tensors that receive gradients."""

    def clear(self) -> None:
        """Clear gradients; every step begins with it, as in a training loop."""
        for leaf in self.leaves():
            leaf.grad = None

    def gradient_bytes(self) -> int:
        """Size of the gradients of the last step, which no implementation can avoid."""
        return sum(leaf.grad.nbytes for leaf in self.leaves() if leaf.grad is not None)


@dataclass(frozen=True)
class Contender:
    """One line of a table.

    Args:
        name: what `--only` takes.
        make: from a problem to a step, with all preparation that is done once. It is sent to another process to
            measure memory, so it must be a module's function, or a `partial` of one.
        about: one line for `--help`.
        needs: requirements, checked in turn.
        package: name on PyPI, if it is another library's.
        module: name of its Python module.
        compiled: True if the first step compiles, so that its memory is not representative.
        memory: False to leave its memory unmeasured.
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
        """Why it cannot run, or None."""
        reason = next((reason for need in self.needs if (reason := need(options))), None)
        if reason is None and self.module is not None and find_spec(self.module) is None:
            return f"not installed; run: pip install {self.package}"
        return reason

    @property
    def installed(self) -> str | None:
        """Version of its package, if installed."""
        try:
            return None if self.package is None else version(self.package)
        except PackageNotFoundError:
            return None


def cuda(options: Namespace) -> str | None:
    """Requires an NVIDIA GPU."""
    return None if options.device == "cuda" else "runs on a GPU only; pass --device cuda"


def compiler(options: Namespace) -> str | None:
    """Requires a C++ compiler, which `torch.compile` builds its kernels with."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    if any(name and shutil.which(name) for name in names):
        return None
    return "no C++ compiler for torch.compile; install g++, or set CXX"
