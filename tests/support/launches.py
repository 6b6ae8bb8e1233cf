"""Counts the kernels that a training step would launch on a device, on the CPU, by where they come from."""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dro_temp

_PACKAGE = str(Path(dro_temp.__file__).parent)

# Operations that launch nothing: they read shapes, allocate, or return their input.
_NO_LAUNCH = {
    "aten::promote_types",
    "aten::scalar_tensor",  # of the host
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::detach",
    "aten::lift_fresh",
    "aten::resize_",
    "aten::is_same_size",
    "aten::record_stream",
}


class Launches(TorchDispatchMode):
    """Counts operations of tensors that are no views, by the line of the library that asked for them.

    One operation counts as one kernel: a sort or a product may take more, and an addition never takes less.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_operation: Counter[str] = Counter()
        self.by_function: Counter[str] = Counter()
        self._inside_kernel, self._grid = False, None

    @property
    def total(self) -> int:
        return sum(self.by_operation.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name.startswith("aten::") and not (func.is_view or name in _NO_LAUNCH):
            self.add(name)
        return func(*args, **(kwargs or {}))

    def add(self, name: str) -> None:
        if not self._inside_kernel:
            self.by_operation[name] += 1
            self.by_function[_source()] += 1

    def __enter__(self):
        """Also counts kernels of Triton, whose interpreter makes operations of its own."""
        interpreted = _interpreted_grid()
        if interpreted is not None:
            self._grid, self._run = interpreted, interpreted.__call__

            def once(grid, *args, **kwargs):
                self.add(f"triton::{grid.fn.__name__}")
                self._inside_kernel = True
                try:
                    return self._run(grid, *args, **kwargs)
                finally:
                    self._inside_kernel = False

            interpreted.__call__ = once
        return super().__enter__()

    def __exit__(self, *error):
        if self._grid is not None:
            self._grid.__call__ = self._run
        return super().__exit__(*error)


def _interpreted_grid():
    """What runs an interpreted kernel; None without Triton."""
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        return None
    return GridExecutor


def _source() -> str:
    """The innermost line of the library; in backward, that of the forward."""
    node = torch._C._current_autograd_node()
    lines = [] if node is None else node.metadata.get("traceback_", [])
    ours = [line for line in lines if _PACKAGE in line]
    if ours:
        file, line, function = ours[-1].splitlines()[0].split(", ")
        path = file.split('"')[1].removeprefix(_PACKAGE + "/")
        return f"{path}:{line.split()[1]} {function.removeprefix('in ')} (backward)"
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(_PACKAGE)]
    if not frames:
        return "elsewhere" if node is None else "elsewhere (backward)"
    return f"{frames[-1].filename.removeprefix(_PACKAGE + '/')}:{frames[-1].lineno} {frames[-1].name}"


def counted(step: Callable[[], object], *, sources: bool = False) -> Launches:
    """Launches of a step; `sources` tells where those of backward come from, and is slower."""
    with torch.autograd.set_detect_anomaly(sources, check_nan=False), Launches() as launches:
        step()
    return launches
