"""The example runs open_clip's real loop over glyphs, a CSV file and shards, in one process and in two; and resumes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from isolation import imported_example
from PIL import Image

for package in ("tyro", "torchvision", "open_clip", "open_clip_train", "webdataset"):
    pytest.importorskip(package)

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def example():
    """The example's modules, imported as `python examples/clip_open_clip.py` imports them."""
    with imported_example("clip_open_clip") as module:
        yield module


@pytest.fixture(autouse=True)
def cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(ROOT / ".cache"))


def checkpoint(out: Path) -> dict:
    return torch.load(out / "latest.pt", weights_only=True)


def assert_same(a: dict, b: dict) -> None:
    assert a["results"] == b["results"]
    for part in ("state_dict", "loss"):
        assert list(a[part]) == list(b[part])
        for name, value in a[part].items():
            assert torch.equal(value, b[part][name]), name


@pytest.fixture(scope="module")
def finished(example, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert example.main(["--quick", "--out", str(out)]) == 0
    return out


def test_help_mentions_every_option(example, capsys):
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for option in (
        "csv",
        "shards",
        "size",
        "epochs",
        "batch-size",
        "accum-freq",
        "lr",
        "tau-lr",
        "rho",
        "out",
    ):
        assert f"--{option}" in said
    assert "torchrun" in said


def test_its_memory_knows_every_pair_and_its_model_is_open_clips_own(finished):
    from open_clip_loop.model import tiny_clip

    saved = checkpoint(finished)
    for view in ("image", "text"):
        log_u = saved["loss"][f"objective.losses.{view}.estimator.log_u"]
        assert log_u.shape == (128,)
        assert bool(log_u.isfinite().all())
        assert int(saved["loss"][f"objective.losses.{view}.estimator.steps"]) == 8
    plain = tiny_clip()
    plain.load_state_dict(saved["state_dict"], strict=True)
    assert saved["results"]["after"]["num_samples"] == 64
    assert saved["results"]["after"]["clip_val_loss"] < saved["results"]["before"]["clip_val_loss"]


def test_after_ctrl_c_the_same_command_goes_on(example, finished, tmp_path, capsys, monkeypatch):
    options = ["--quick", "--out", str(tmp_path)]
    real = example.train_one_epoch

    def stopped_in_the_second_epoch(model, data, loss, epoch, *others):
        if epoch == 1:
            raise KeyboardInterrupt
        real(model, data, loss, epoch, *others)

    with monkeypatch.context() as patch:
        patch.setattr(example, "train_one_epoch", stopped_in_the_second_epoch)
        assert example.main(options) == 130
    assert "the same command resumes" in capsys.readouterr().out
    assert checkpoint(tmp_path)["epoch"] == 1
    assert example.main(options) == 0
    assert "R@10, mean of both directions" in capsys.readouterr().out
    assert_same(checkpoint(tmp_path), checkpoint(finished))


def test_other_options_are_no_continuation(example, finished, capsys):
    assert example.main(["--quick", "--out", str(finished), "--rho", "1.5"]) == 2
    said = capsys.readouterr().err
    assert "rho=2.0, received others. Type them, or --out with another folder." in said


@pytest.fixture(scope="module")
def glyphs():
    from dro_temp.datasets import GlyphCaptions

    data = GlyphCaptions("train", size=40)
    return [
        (Image.fromarray(x.numpy()), caption) for x, caption in zip(data.images, data.captions, strict=True)
    ]


def test_pairs_of_a_csv_file(example, glyphs, tmp_path):
    lines = ["filepath,title"]
    for i, (image, caption) in enumerate(glyphs):
        image.save(tmp_path / f"{i}.png")
        lines.append(f'{tmp_path / f"{i}.png"},"{caption}"')
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    assert example.main(["--quick", "--csv", str(tmp_path / "pairs.csv"), "--out", str(tmp_path)]) == 0
    log_u = checkpoint(tmp_path)["loss"]["objective.losses.text.estimator.log_u"]
    assert log_u.shape == (40,)  # a number for every row; each of two epochs drops eight of them
    assert 32 <= int(log_u.isfinite().sum()) <= 40


# webdataset leaves the shard open at which an epoch of an endless stream ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_pairs_of_shards(example, glyphs, tmp_path):
    import webdataset as wds

    from dro_temp.datasets import SampleTable

    with wds.ShardWriter(str(tmp_path / "pairs-%03d.tar"), maxcount=20, verbose=0) as writer:
        for i, (image, caption) in enumerate(glyphs):
            writer.write({"__key__": f"{i:06d}", "png": image, "txt": caption})
    shards = str(tmp_path / "pairs-{000..001}.tar")
    assert example.main(["--quick", "--shards", shards, "--out", str(tmp_path)]) == 0
    log_u = checkpoint(tmp_path)["loss"]["objective.losses.text.estimator.log_u"]
    numbers = SampleTable(4 * 128).numbers(f"{i:06d}" for i in range(40))
    seen = set(log_u.isfinite().nonzero().flatten().tolist())
    assert len(seen) > 10
    assert seen <= set(numbers.tolist())


@pytest.mark.slow
def test_two_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLES / "clip_open_clip.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("R@1, mean of both directions") == 1
    saved = checkpoint(tmp_path)
    assert saved["options"]["processes"] == 2
    log_u = saved["loss"]["objective.losses.image.estimator.log_u"]
    assert bool(log_u.isfinite().all())  # what the other process saw as well
    assert int(saved["loss"]["objective.losses.image.estimator.steps"]) == 4
