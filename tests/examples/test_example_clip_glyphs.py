"""The example keeps its promises: it writes what it says, stops cleanly, and resumes bit for bit."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from isolation import imported_example

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ["--train-size", "256", "--eval-size", "64", "--batch-size", "32", "--threads", "1", "--rho", "1.0"]
EPOCHS = "8"


@pytest.fixture(scope="module")
def example():
    """The example's modules, imported as `python examples/clip_glyphs.py` imports them."""
    with imported_example("clip_glyphs") as module:
        yield module


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(example):
    from glyphs.config import Config

    return example.load(Config(train_size=256, eval_size=64, batch_size=32))


@pytest.fixture(scope="module")
def finished(example, tmp_path_factory):
    """Two methods, not interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert example.main([*TINY, "--epochs", EPOCHS, "--out", str(out)]) == 0
    return out


def checkpoint(out, method="tempnet"):
    state = torch.load(out / "checkpoints" / f"{method}-seed0.pt", weights_only=True)
    del state["seconds"]
    return state


def assert_same(a, b, where="checkpoint"):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def test_help_mentions_every_option(example, capsys):
    from glyphs.config import Config

    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in shown
    assert shown.rstrip().splitlines()[-6].startswith("examples:")


def test_writes_tables_plots_and_checkpoints(finished):
    results = json.loads((finished / "results.json").read_text())
    assert [run["method"] for run in results["runs"]] == ["infonce", "tempnet"]
    assert results["config"]["train_size"] == 256
    assert {"python", "torch", "dro_temp"} <= set(results["versions"])
    for run in results["runs"]:
        assert all(0 <= value <= 100 for value in run["metrics"].values())
        assert len(run["history"]["loss"]) == int(EPOCHS)
    tempnet = results["runs"][1]["metrics"]
    assert 0.01 <= tempnet["tau_image_mean"] <= 0.2
    assert tempnet["tau_image_std"] > 0
    assert results["runs"][0]["gap_recovered"] == {}
    for share, low, high in results["runs"][1]["gap_recovered"].values():
        assert low < share < high < 1
    table = (finished / "results.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[:4]] == ["method", "---", "infonce", "tempnet"]
    assert len({line.count("|") for line in table[:4]}) == 1
    gaps = [line.split("|")[-2].strip() for line in table[:4]]
    assert gaps[0] == "gap recovered, images / names"
    assert gaps[2] == "-"
    assert len(gaps[3].split(" / ")) == 2
    for name in ("temperature_histogram.png", "extremes.png", "curves.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG"), name
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "infonce-seed0.pt",
        "tempnet-seed0.pt",
    ]


@pytest.mark.parametrize(
    ("seeds", "cell"),
    [
        ([{"image": (0.416, 0.38, 0.45), "text": (-0.5, -0.6, -0.4)}], "42 [38, 45] / -50 [-60, -40]"),
        ([{"image": (x, 0.0, 0.0), "text": (-x, 0.0, 0.0)} for x in (0.3, 0.5)], "40 ± 14 / -40 ± 14"),
        ([{"image": (-40.0, -50.0, -30.0), "text": (0.0, 0.0, 0.0)}], "< -999 / 0 [0, 0]"),
        ([{}], "-"),
    ],
)
def test_says_how_much_of_the_gap_was_recovered(example, seeds, cell):
    from glyphs.report import _recovered

    assert _recovered(seeds) == cell


def test_the_table_fits_in_120_columns(finished, example, capsys):
    assert example.main([*TINY, "--epochs", EPOCHS, "--out", str(finished), "--resume"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("Retrieval of glyphs"))
    table = lines[start + 1 : 1 + max(i for i, line in enumerate(lines) if "────" in line)]
    assert any("gap recovered," in line for line in table)
    assert not any("…" in line for line in table)
    assert max(map(len, table)) <= 120


def test_learns(example, data):
    from glyphs.config import Config
    from glyphs.training import Run

    run = Run("tempnet", 0, Config(train_size=256, eval_size=64, batch_size=32, epochs=12, rho=1.0), data)
    run.fit(save=lambda run: None)
    assert run.history["loss"][-1] < run.history["loss"][0]
    assert run.recalls("train")["train/i2t_r1"] > 10 * 100 / len(data.splits["train"].names)


@pytest.mark.slow
def test_ctrl_c_then_resume_equals_uninterrupted(finished, example, tmp_path, capsys):
    options = [*TINY, "--epochs", EPOCHS, "--out", str(tmp_path)]
    command = [sys.executable, "-W", "error", str(EXAMPLES / "clip_glyphs.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("tempnet seed 0: epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        said = process.stdout.read()
    assert process.returncode == 130
    assert f"clip_glyphs.py {' '.join(options)} --resume" in said
    assert not (tmp_path / "results.json").exists()
    assert checkpoint(tmp_path)["result"] is None

    assert example.main([*options, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "infonce seed 0: already finished" in said
    assert "tempnet seed 0: resumed after step" in said
    for method in ("infonce", "tempnet"):
        assert_same(checkpoint(tmp_path, method), checkpoint(finished, method))
    metrics = [[r["metrics"] for r in json.loads((out / "results.json").read_text())["runs"]]
               for out in (tmp_path, finished)]  # fmt: skip
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    "method", ["infonce", "tempnet", "tempnet-paper", "constant", "learnable", "individual"]
)
def test_every_method_resumes_in_the_middle_of_an_epoch(example, data, method, tmp_path):
    from glyphs.checkpoint import Checkpoints
    from glyphs.config import Config
    from glyphs.training import Run

    config = Config(train_size=256, eval_size=64, batch_size=32, epochs=2, rho=1.0)
    whole = Run(method, 0, config, data)
    whole.fit(save=lambda run: None)

    cut, ours = Run(method, 0, config, data), Checkpoints(tmp_path, resume=False)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(save=ours.save, should_stop=lambda: cut.epoch == 1 and cut.step == 3)
    resumed = Run(method, 0, config, data)
    assert Checkpoints(tmp_path, resume=True).restore(resumed)
    assert (resumed.epoch, resumed.step) == (1, 3)
    resumed.fit(save=lambda run: None)
    states = [run.state_dict() | {"seconds": 0.0} for run in (whole, resumed)]
    assert_same(*states)


def test_refuses_to_resume_with_other_options(finished, example, capsys):
    before = (finished / "checkpoints" / "tempnet-seed0.pt").read_bytes()
    options = ["--epochs", EPOCHS, "--out", str(finished), "--resume"]
    assert example.main([*TINY, *options, "--lr", "0.001"]) == 2
    said = capsys.readouterr().err
    for part in ("expected", f"--lr {example.Config().lr:g}", "received", "--lr 0.001", "--resume"):
        assert part in said
    assert (finished / "checkpoints" / "tempnet-seed0.pt").read_bytes() == before


def test_starting_over_drops_old_checkpoints_only_when_a_new_one_is_there(example, data, tmp_path):
    from glyphs.checkpoint import Checkpoints
    from glyphs.config import Config
    from glyphs.training import Run

    config = Config(train_size=256, eval_size=64, batch_size=32)
    old = tmp_path / "individual-seed3.pt"
    old.touch()
    checkpoints = Checkpoints(tmp_path, resume=False)
    run = Run("infonce", 0, config, data)
    assert not checkpoints.restore(run)
    assert old.exists()
    checkpoints.save(run)
    assert [path.name for path in tmp_path.iterdir()] == ["infonce-seed0.pt"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "0"], "--epochs of at least 1"),
        (["--train-size", "10", "--batch-size", "32"], "--train-size of at least 32"),
        (["--train-size", "1000000"], "Type --train-size"),
        (["--seeds", "1", "1"], "Type for example --seeds 1"),
        (["--methods"], "Type for example --methods tempnet"),
        (["--hold", "1"], "Type --hold 0.3"),
        (["--rho", "-1"], "rho=-1"),
        (["--tau-min", "0.3"], "tau_min=0.3"),
    ],
)
def test_refuses_options_that_make_no_sense(example, options, said, tmp_path, capsys):
    try:
        code = example.main([*TINY, "--out", str(tmp_path / "new"), *options])
    except SystemExit as stopped:  # by the command line's own parser
        code = stopped.code
    assert code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()
