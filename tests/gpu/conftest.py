"""The same tests at two sizes: small ones with the kernels interpreted, and real ones on a card (`make test-gpu`)."""

from dataclasses import dataclass

import pytest
import torch


@dataclass(frozen=True)
class Size:
    """Where a test runs, and how large its problem is."""

    device: torch.device
    tokens: int
    width: int
    vocabulary: int
    pairs: int
    dimension: int


SMALL = Size(torch.device("cpu"), 6, 8, 40, 12, 8)
REAL = Size(torch.device("cuda"), 512, 512, 128_256, 16_384, 512)


def pytest_collection_modifyitems(items):
    """One reason for all: there is no card."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(params=["small", pytest.param("real", marks=pytest.mark.gpu)])
def size(request):
    """Small on the CPU, or real on a card."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if request.param == "small" and torch.cuda.is_available():
        pytest.skip("kernels are interpreted only where there is no GPU")
    return SMALL if request.param == "small" else REAL
