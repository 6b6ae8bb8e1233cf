"""Where the Triton kernels run, and that they compile; what they compute is tested in test_backends.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dro_temp.kernels.dispatch import triton_backend


def _python(code: str, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | variables
    command = [sys.executable, *([code] if code.endswith(".py") else ["-c", code])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_kernel_compiles_for_an_h100(tmp_path):
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 6):
        pytest.skip("compiling without a GPU was another call then")
    if importlib.util.find_spec("triton.backends.nvidia") is None:
        pytest.skip("this Triton does not compile for NVIDIA GPUs")
    script = str(Path(__file__).parents[1] / "support" / "triton_compiles.py")
    compiled = _python(script, TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=str(Path(__file__).parents[2]))
    assert len(compiled.splitlines()) == 60


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
import dro_temp  # imports no module that needs Triton
from dro_temp.kernels import log_mean_exp_rows
from dro_temp.kernels.backends import reference
from dro_temp.kernels.dispatch import triton_backend, triton_runs_on
assert not triton_runs_on(torch.device("cuda")), "on a GPU"
p = dro_temp.Rows(dro_temp.LinearScores(torch.randn(4, 8), torch.randn(9, 8)), torch.arange(4))
torch.testing.assert_close(*(way(p, torch.ones(4)).log_g for way in (reference.log_mean_exp_rows, log_mean_exp_rows)))
for device in ("cuda", "cpu"):
    try:
        triton_backend(torch.device(device))
    except ImportError as error:
        print(error)
"""


def test_without_triton():
    missing, elsewhere = _python(WITHOUT_TRITON).splitlines()
    assert "expected Triton" in missing
    assert "pip install triton" in missing
    assert "backend='torch'" in missing
    assert "received tensors on 'cpu'" in elsewhere


def test_the_cpu_is_refused_unless_kernels_are_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ImportError, match="expected tensors on an NVIDIA GPU"):
        triton_backend(torch.device("cpu"))
