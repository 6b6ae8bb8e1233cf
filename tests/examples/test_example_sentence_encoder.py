"""The example trains with sentence-transformers' own trainer, resumes, and finds more than before."""

import contextlib
import io
import os
import re
from pathlib import Path

import pytest
import torch
from isolation import forget_accelerate, imported_example

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for package in ("tyro", "sentence_transformers", "accelerate", "datasets"):
    pytest.importorskip(package)

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def example():
    """The example's module, imported as `python examples/train_sentence_encoder.py` imports it."""
    with imported_example("train_sentence_encoder") as module:
        yield module


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(ROOT / ".cache"))
    yield
    forget_accelerate()


def last_loss(out: Path) -> dict:
    last = max(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    return torch.load(last / "robust_ranking_loss.pt", weights_only=True)


@pytest.fixture(scope="module")
def finished(example, tmp_path_factory):
    """Its folder, and what it said."""
    out = tmp_path_factory.mktemp("whole")
    os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert example.main(["--quick", "--out", str(out)]) == 0
    return out, said.getvalue()


def test_help_mentions_every_option(example, capsys):
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for option in ("size", "epochs", "batch-size", "lr", "tau-lr", "rho", "out", "resume", "quick"):
        assert f"--{option}" in said


def test_it_finds_more_than_before_and_remembers_every_pair(finished):
    out, said = finished
    before, after = (float(share) for share in re.findall(r"R@10 ([\d.]+) %", said))
    assert after > before + 5
    saved = last_loss(out)["loss"]
    pairs = int(re.search(r"^(\d+) pairs", said, re.M)[1])
    for view in ("anchor", "positive"):
        log_u = saved[f"objective.losses.{view}.estimator.log_u"]
        assert log_u.shape == (pairs,)
        assert bool(log_u.isfinite().all())


@pytest.mark.slow
def test_after_ctrl_c_resume_goes_on(example, finished, tmp_path, capsys, monkeypatch):
    options = ["--quick", "--out", str(tmp_path)]
    real = example.RobustRankingLoss.callback

    def stopping_in_the_second_epoch(loss):
        callback = real(loss)

        def stop(args, state, control, **_):
            if state.epoch >= 1:
                raise KeyboardInterrupt

        callback.on_epoch_begin = stop
        return callback

    with monkeypatch.context() as patch:
        patch.setattr(example.RobustRankingLoss, "callback", stopping_in_the_second_epoch)
        assert example.main(options) == 130
    assert "--resume continues" in capsys.readouterr().err
    assert example.main([*options, "--resume"]) == 0
    ours, theirs = last_loss(tmp_path), last_loss(finished[0])
    assert ours["step"] == theirs["step"]
    for name, value in theirs["loss"].items():
        assert torch.equal(ours["loss"][name], value), name


def test_nothing_to_resume(example, tmp_path, capsys):
    assert example.main(["--quick", "--resume", "--out", str(tmp_path)]) == 2
    assert "No valid checkpoint found" in capsys.readouterr().err
