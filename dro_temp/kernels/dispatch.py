"""Which backend computes some scores, and why. Importing this neither builds C code nor imports Triton."""

import importlib.util
import os
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from dro_temp import _faults
from dro_temp._checks import check_choice
from dro_temp._tensors import constant_in_graphs
from dro_temp.kernels.backends import cpu
from dro_temp.kernels.backends import torch as torch_backend
from dro_temp.kernels.backends.cpu.library import native
from dro_temp.kernels.backends.protocol import Backend

#: How scores that are products are computed, see `losses.LogMeanExpLoss`.
BackendOption: TypeAlias = Literal["auto", "reference", "torch", "cpu", "triton"]
BACKENDS = ("auto", "reference", "torch", "cpu", "triton")

#: Rows that a kernel compares each with each other, to find a batch's duplicates; more are sorted.
MOST_COMPARED = 2**16

# The first generation of NVIDIA GPUs that Triton compiles for.
_FIRST_CAPABILITY = (7, 0)


def check_backend(backend: Any) -> BackendOption:
    """Return `backend`, or raise if there is none of that name."""
    check_choice("backend", backend, BACKENDS)
    return backend  # type: ignore[no-any-return]


def fastest_backend(device: torch.device, dtype: torch.dtype) -> Literal["triton", "cpu", "torch"]:
    """The fastest available backend for scores of that device and precision."""
    if device.type == "cpu":
        return "cpu" if _cpu_obstacle(device, dtype) is None else "torch"
    return "triton" if triton_runs_on(device) else "torch"


def streaming_backend(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend of this name, for scores of that device and precision.

    Raises:
        RuntimeError, ImportError: it does not support them, or is unavailable.
    """
    if name == "torch":
        return torch_backend
    return cpu_backend(device, dtype) if name == "cpu" else triton_backend(device)


# C, for float32 on a CPU


def cpu_runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the C backend supports scores of that device and precision; builds it on first use."""
    return _cpu_obstacle(device, dtype) is None


def cpu_backend(device: torch.device, dtype: torch.dtype) -> Backend:
    """The C backend, for scores of that device and precision.

    Raises:
        RuntimeError: it does not support them, or cannot be built.
    """
    obstacle = _cpu_obstacle(device, dtype)
    if obstacle is not None:
        raise RuntimeError(
            f"expected float32 scores on a CPU, and a C compiler, for backend='cpu', received another case: "
            f"{obstacle}. Pass backend='torch' (or 'auto'), which streams anywhere."
        )
    return cpu


# torch.compile would trace into the cached function, warn about it, and trace the build of the library.
@constant_in_graphs
def _cpu_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"the tensors are on {str(device)!r}"
    if dtype != torch.float32:
        return f"the scores are {str(dtype).removeprefix('torch.')}"
    return native().lack or None


# Triton, for NVIDIA GPUs


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton is installed and compiles for that device."""
    return _triton_obstacle(device) is None


def triton_backend(device: torch.device) -> Backend:
    """The Triton backend for tensors of that device; on the CPU, with TRITON_INTERPRET=1, its interpreter.

    Raises:
        ImportError: Triton is not installed, or not for that device.
    """
    obstacle = None if triton_interprets(device) else _triton_obstacle(device)
    if obstacle is not None:
        raise ImportError(obstacle)
    from dro_temp.kernels.backends import triton

    return triton


def triton_interprets(device: torch.device) -> bool:
    """Whether kernels run on that CPU in Triton's interpreter."""
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and _triton_is_installed()


def replaces_operations(*tensors: Tensor) -> bool:
    """Whether one kernel may replace some of PyTorch's operations on these tensors, which saves launches.

    On a GPU, in ordinary autograd, for tensors with memory of their own: not in a compiled graph, which fuses them,
    under `vmap` and the like, in forward mode, or for sharded tensors.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    device = tensors[0].device
    if not all(type(x) in (Tensor, torch.nn.Parameter) and x.device == device for x in tensors):
        return False
    if device.type == "cuda":
        return triton_runs_on(device)
    return _faults.everywhere and triton_interprets(device)


def row_numbers() -> Any:
    """Kernels for a number per row (`replaces_operations`); their module imports Triton."""
    from dro_temp.kernels.backends.triton import row_numbers

    return row_numbers


def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.version.hip is not None:
        return (
            f"expected tensors on an NVIDIA GPU for backend='triton', received tensors on {str(device)!r}. Move "
            "them there, or pass backend='torch' (or 'auto'), which streams on any device."
        )
    if not _triton_is_installed():
        return (
            "expected Triton for backend='triton', received a Python without it. pip install triton, or pass "
            "backend='torch' (or 'auto')."
        )
    if torch.cuda.get_device_capability(device) < _FIRST_CAPABILITY:
        return (
            "expected a GPU of compute capability 7.0 or later for backend='triton', received "
            f"{torch.cuda.get_device_name(device)}. Pass backend='torch' (or 'auto')."
        )
    return None
