"""The example on one process and on two, launched as people launch it: the same losses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tyro")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "examples" / "distributed.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def _run(*launcher, out, options=()):
    done = subprocess.run(
        [*launcher, SCRIPT, "--quick", "--out", str(out), *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(ROOT / ".cache"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _found(said):
    loss, sent = re.search(r"epoch 1: loss (\S+), (\d+) bytes", said).groups()
    return float(loss), int(sent)


@pytest.mark.slow
def test_two_processes_say_what_one_says(tmp_path):
    loss, sent = _found(_run(sys.executable, out=tmp_path / "one"))
    assert sent == 0
    numbers, fewer = _found(_run(*TORCHRUN, out=tmp_path / "numbers"))
    assert numbers == pytest.approx(loss, abs=2e-5)
    assert fewer > 0
    # What two processes left, one goes on with: nothing is left to do.
    assert "epoch 1" not in _run(sys.executable, out=tmp_path / "numbers")


@pytest.mark.slow
def test_numbers_per_row_are_less_to_send_than_gradients(tmp_path):
    numbers, fewer = _found(_run(*TORCHRUN, out=tmp_path / "numbers"))
    gradients, more = _found(_run(*TORCHRUN, out=tmp_path / "gradients", options=("--backend", "reference")))
    assert gradients == pytest.approx(numbers, abs=2e-5)
    assert fewer < more / 2
