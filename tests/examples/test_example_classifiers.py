"""The classifier's four loops run: plain, timm's own, Lightning's and accelerate's; and two of them resume."""

import contextlib
import io
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from isolation import forget_accelerate, imported_example

for package in ("tyro", "timm", "accelerate", "matplotlib"):
    pytest.importorskip(package)

SIZES = {"size": 640, "epochs": 1}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(__file__).resolve().parents[2] / ".cache"))
    yield
    forget_accelerate()


def ran(name, tmp_path, **options):
    """What the example printed, and returned."""
    said = io.StringIO()
    with imported_example(name) as example, contextlib.redirect_stdout(said), warnings.catch_warnings():
        # Lightning warns of few workers; timm's EMA and torch of what each other deprecate.
        warnings.simplefilter("ignore")
        result = example.run(example.Options(**SIZES | options, out=tmp_path))
    return said.getvalue(), result


@pytest.mark.parametrize("mixup", [pytest.param(0.0, marks=pytest.mark.slow), 0.4])
def test_plain_loop(tmp_path, mixup):
    said, _ = ran("timm_classifier", tmp_path, mixup=mixup)
    assert re.search(r"test: \d+\.\d % right; temperatures", said)
    assert {path.name for path in tmp_path.iterdir()} == {"objective.pt", "temperatures.png", "extremes.png"}


def test_examples_are_short():
    examples = Path(__file__).resolve().parents[2] / "examples"
    for name in ("timm_classifier", "lightning_classifier", "accelerate_classifier"):
        assert len((examples / f"{name}.py").read_text().splitlines()) <= 80


def test_timms_loop_with_its_checkpoints(tmp_path):
    said, best = ran("timm_training_loop", tmp_path)
    assert "averaged weights" in said
    assert 0.0 < best <= 100.0
    state = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    assert {"state_dict", "state_dict_ema", "task_state", "optimizer", "amp_scaler"} <= set(state)
    assert any(name.startswith("class.") for name in state["task_state"]["predictors"])


def test_lightning_trains_and_resumes(tmp_path):
    pytest.importorskip("lightning")
    _, trainer = ran("lightning_classifier", tmp_path)
    assert math.isfinite(trainer.callback_metrics["accuracy"])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    _, further = ran("lightning_classifier", tmp_path, epochs=2, resume=checkpoint)
    assert further.global_step == 2 * trainer.global_step


def test_accelerate_trains_and_resumes(tmp_path):
    _, accuracy = ran("accelerate_classifier", tmp_path)
    assert 0.0 < accuracy <= 100.0
    said, _ = ran("accelerate_classifier", tmp_path, resume=True)
    assert "class/tau_mean" in said
