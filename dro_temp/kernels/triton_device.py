"""Where the Triton kernels run; importing this does not import Triton."""

import importlib.util
import os
from typing import Protocol

import torch

from dro_temp.kernels.stripes import PairPasses
from dro_temp.kernels.sweep import RowPasses

# The first generation of NVIDIA GPUs that Triton compiles for.
_FIRST_CAPABILITY = (7, 0)


class FusedPasses(RowPasses, PairPasses, Protocol):
    """All passes over scores, fused; the package `triton_passes` is one."""


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton is installed and compiles for that device."""
    return _lack(device) is None


def fused_passes(device: torch.device) -> FusedPasses:
    """The fused passes for tensors of that device; on the CPU, with TRITON_INTERPRET=1, Triton's interpreter runs them.

    Raises:
        ImportError: Triton is not installed, or not for that device.
    """
    lack = None if _interprets(device) else _lack(device)
    if lack is not None:
        raise ImportError(lack)
    from dro_temp.kernels import triton_passes

    return triton_passes


def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interprets(device: torch.device) -> bool:
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1" and _installed()


def _lack(device: torch.device) -> str | None:
    """What stands in the way, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return (
            f"expected tensors on an NVIDIA GPU for impl='triton', received tensors on {str(device)!r}. Move "
            "them there, or pass impl='chunked' (or 'auto'), which streams on any device."
        )
    if not _installed():
        return (
            "expected Triton for impl='triton', received a Python without it. pip install triton, or pass "
            "impl='chunked' (or 'auto')."
        )
    if torch.cuda.get_device_capability(device) < _FIRST_CAPABILITY:
        return (
            "expected a GPU of compute capability 7.0 or later for impl='triton', received "
            f"{torch.cuda.get_device_name(device)}. Pass impl='chunked' (or 'auto')."
        )
    return None
