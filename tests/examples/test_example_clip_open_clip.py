"""The example runs open_clip's own main over glyphs; it resumes, and passes further options on."""

import sys
import warnings

import open_clip_runs as runs
import pytest
import torch
from isolation import imported_example

pytest.importorskip("open_clip_train")


@pytest.fixture
def example(tmp_path):
    with (
        imported_example("clip_open_clip") as module,
        runs.CACHE,
        runs.logging_restored(),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        yield module


def test_after_ctrl_c_the_same_command_goes_on(example, tmp_path, capsys, monkeypatch):
    theirs = sys.modules["open_clip_train.main"]
    options = ["--quick", "--out", str(tmp_path)]
    real = theirs.train_one_epoch

    def stopped_in_the_second_epoch(model, data, loss, epoch, *others, **named):
        if epoch == 1:
            raise KeyboardInterrupt
        real(model, data, loss, epoch, *others, **named)

    with monkeypatch.context() as patch:
        patch.setattr(theirs, "train_one_epoch", stopped_in_the_second_epoch)
        assert example.main(options) == 130
    assert "the same command resumes" in capsys.readouterr().out
    assert example.main(options) == 0
    assert "R@10, mean of both directions, over 128 training pairs: " in capsys.readouterr().out
    saved = torch.load(tmp_path / "glyphs" / "checkpoints" / "epoch_2.pt", weights_only=True)
    log_u = saved["dro_temp"]["loss"]["objective.losses.image.estimator.log_u"]
    assert log_u.shape == (128,)
    assert bool(log_u.isfinite().all())
    assert int(saved["dro_temp"]["loss"]["objective.losses.image.estimator.steps"]) == 8


def test_further_options_reach_the_command(example, tmp_path, capsys):
    assert example.main(["--quick", "--out", str(tmp_path), "--scheme", "sogclr", "--rho", "2"]) == 2
    assert "expected options of --scheme sogclr" in capsys.readouterr().err
