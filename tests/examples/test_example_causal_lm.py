"""The example runs, resumes, and says what is wrong."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from isolation import imported_example

pytest.importorskip("tyro")
pytest.importorskip("rich")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def example():
    """The example's modules, imported as `python examples/causal_lm.py` imports them."""
    with imported_example("causal_lm") as module:
        yield module


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(ROOT / ".cache"))


@pytest.fixture(scope="module")
def finished(example, tmp_path_factory):
    out = tmp_path_factory.mktemp("lm")
    os.environ["XDG_CACHE_HOME"] = str(ROOT / ".cache")
    assert example.main(["--quick", "--out", str(out)]) == 0
    return out


def test_help_mentions_every_option(example, capsys):
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for option in ("inputs", "rho", "tau-min", "tau-max", "steps", "vocabulary", "size", "out", "quick"):
        assert f"--{option}" in said


def test_leaves_checkpoints_and_a_page(finished):
    names = sorted(path.name.partition("-")[0] for path in finished.iterdir())
    assert names == ["gpt2", "page.html", "tempnet"]
    page = (finished / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert page.count('class="t ') > 50


def test_goes_on_where_it_stopped(finished, example, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*.pt")}
    assert example.main(["--quick", "--out", str(finished)]) == 0
    assert {
        path: path.stat().st_mtime_ns for path in finished.glob("*.pt")
    } == before  # nothing left to train
    said = capsys.readouterr().out
    assert "optimum" in said
    assert "def read_config(path):" in said


def test_a_stopped_loop_ends_as_one_that_was_not(example, tmp_path, monkeypatch):
    from offline_lm import training

    monkeypatch.setattr(training, "SAVE_EVERY", 3)
    blocks, target = torch.randn(40, 4), torch.randn(4, 1)

    def run(name, stop_at=None):
        torch.manual_seed(0)
        model, calls = torch.nn.Linear(4, 1), []

        def loss(x):
            calls.append(x)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return (model(x) - x @ target).square().mean()

        groups = [{"params": list(model.parameters()), "lr": 0.1}]
        training.train(tmp_path / name, model, groups, loss, blocks, 10)
        return model.state_dict(), len(calls)

    whole, _ = run("whole-.pt")
    with pytest.raises(KeyboardInterrupt):
        run("cut-.pt", stop_at=6)
    resumed, calls = run("cut-.pt")
    assert calls == 7
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_ctrl_c_says_how_to_go_on(tmp_path):
    command = [sys.executable, str(EXAMPLES / "causal_lm.py"), "--size", "400000"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "new")], stdout=subprocess.PIPE, text=True
    ) as process:
        while not (tmp_path / "new").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 130
    assert "the same command resumes" in said


def test_refuses_a_radius_that_is_too_large(finished, example, capsys):
    assert example.main(["--quick", "--out", str(finished), "--rho", "8"]) == 2
    said = capsys.readouterr().err
    assert "causal_lm.py: expected" in said
    assert "6.931" in said


@pytest.mark.slow
def test_joint_training_with_its_control(example, tmp_path, capsys):
    import causal_lm_joint

    assert causal_lm_joint.main(["--quick", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in ("cross-entropy", "tempnet", "constant"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    assert len(before) == 3
    assert causal_lm_joint.main(["--quick", "--out", str(tmp_path)]) == 0
    # Nothing is left to train, and models that were read back say the same.
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")} == before
    table = [line for line in said.splitlines() if "│" in line]
    assert table
    assert [line for line in capsys.readouterr().out.splitlines() if "│" in line] == table
    assert causal_lm_joint.main(["--quick", "--out", str(tmp_path), "--rho", "8"]) == 2
