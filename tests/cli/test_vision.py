"""`dro-temp vision`: data, losses and risks, interruptions, doubtful labels, and what a run leaves."""

import csv
import json
import re
import signal
import subprocess
import sys

import picture_files as files
import pytest
import torch
from cli_runs import KILLED, assert_equal, interrupted, weights
from processes import run_code

pytest.importorskip("timm")
pytest.importorskip("jsonargparse")
pytest.importorskip("accelerate")

from dro_temp.cli.main import main
from dro_temp.cli.messages import sentence
from dro_temp.cli.vision import VISION
from dro_temp.cli.vision.data import Columns, Source, labelled
from dro_temp.cli.vision.schemes import RISKS, SCHEMES
from dro_temp.datasets import GlyphScripts

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

IMAGES, WRONG = 80, (5, 17, 40)
AGAINST_WRONG_LABELS = ("--scheme", "cross_entropy", "--risk", "optimistic", "--label_smoothing", "0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images by class, three of them in a wrong one."""
    return files.write_classes(tmp_path_factory.mktemp("vision") / "classes", IMAGES, wrong=WRONG)


def command(data, output, *options):
    sizes = ["--epochs", "2", "--batch", "16", "--save_every", "2", "--warmup", "1", "--crop", "0.8"]
    return ["vision", "fit", str(output), "--data", str(data), *sizes, *options]


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A short run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(command(folder, run, *AGAINST_WRONG_LABELS)) == 0
    return run


def test_a_run_leaves_a_model_that_timm_loads(finished):
    import timm

    written = json.loads((finished / "finished.json").read_text())
    assert {"accuracy", "nll", "nll_tau", "tau"} <= written["validations"][0].keys()
    model = timm.create_model(f"local-dir:{finished / 'model'}", pretrained=True)
    assert model.num_classes == 4
    assert model.pretrained_cfg["label_names"] == ["blue", "green", "grey", "red"]
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 32, 32)  # as it was trained
    other = timm.create_model(
        "test_resnet", num_classes=4, checkpoint_path=str(finished / "model" / "model.safetensors")
    )
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(image), other.eval()(image))


def doubtful(run):
    with (run / "doubtful.csv").open() as file:
        return list(csv.DictReader(file))


def test_eval_and_view(finished, capsys):
    assert main(["vision", "eval", str(finished)]) == 0
    said = capsys.readouterr().out
    written = json.loads((finished / "finished.json").read_text())
    best = max(written["validations"], key=lambda found: found["accuracy"])
    assert f"{best['accuracy']:.2f}" in said  # of the same images, read at the same size
    assert "best constant" in said
    assert "accuracy" in said
    rows = doubtful(finished)
    assert len(rows) == IMAGES - 8  # a tenth is held out
    losses = [float(row["loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert float(rows[0]["weight"]) < 1 < float(rows[-1]["weight"])
    assert main(["vision", "view", str(finished), "--limit", "12", "--doubted", "4"]) == 0
    page = (finished / "page.html").read_text()
    assert "Most doubtful labels" in page
    assert 12 <= page.count('class="i ') <= 16


@pytest.mark.slow
def test_the_most_doubtful_labels_are_the_wrong_ones(folder, tmp_path):
    run = tmp_path / "run"
    longer = ("--epochs", "8", "--batch", "8", "--lr", "0.005")
    assert main(command(folder, run, *AGAINST_WRONG_LABELS, *longer)) == 0
    assert main(["vision", "eval", str(run)]) == 0
    names = [row["image"].rpartition("/")[2] for row in doubtful(run)]
    wrong = {f"{i:03}.png" for i in WRONG} & set(names)
    assert len(wrong) >= 2
    assert set(names[: len(wrong)]) == wrong


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(folder, tmp_path, monkeypatch):
    for name in ("whole", "parts"):
        arguments = command(folder, tmp_path / name, "--risk", "optimistic", "--augment", "rand-m9-mstd0.5")
        if name == "parts":
            assert interrupted(arguments, 3, monkeypatch) == 130
        assert main(arguments) == 0
    assert_equal(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("risk", RISKS)
def test_every_scheme_and_risk(folder, tmp_path, scheme, risk):
    run = tmp_path / "run"
    assert main(command(folder, run, "--epochs", "1", "--scheme", scheme, "--risk", risk)) == 0
    if risk in ("mean", "cvar"):
        assert main(["vision", "eval", str(run)]) == 0
        assert main(["vision", "view", str(run), "--limit", "8"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 6])
def test_a_killed_run_goes_on_bit_for_bit(folder, tmp_path, step):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(folder, whole)) == 0
    killed = run_code(KILLED, str(step), *command(folder, parts))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert main(command(folder, parts, "--workers", "2")) == 0
    assert_equal(whole, parts)


@pytest.mark.slow
def test_several_processes(folder, tmp_path):
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(folder, run, "--batch", "8", "--risk", "optimistic")
    done = subprocess.run(
        [*launcher, "-m", "dro_temp.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("wrote ") == 1
    assert weights(run)


class Few(GlyphScripts):
    """Few of the glyphs."""

    def __init__(self, split):
        super().__init__(split, size=1000)


@pytest.mark.slow
def test_scripts_offline(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dro_temp.cli.vision.data.GlyphScripts", Few)
    run = tmp_path / "run"
    assert main(["vision", "fit", str(run), "--epochs", "1", "--batch", "256", "--val_images", "200"]) == 0
    assert main(["vision", "eval", str(run), "--limit", "500", "--doubtful", "false"]) == 0
    assert "12 classes" in capsys.readouterr().out


def test_sources_hold_the_same_classes(folder, tmp_path):
    pytest.importorskip("datasets")
    table, lines = files.write_table(tmp_path / "table", 24), files.write_csv(tmp_path / "csv", 24)
    for source, names in ((table, tuple(files.COLOURS)), (lines, tuple(sorted(files.COLOURS)))):
        samples, found = labelled(str(source), Columns())
        assert found == names
        image, label = samples.item(6)
        assert found[label] == files.picture(6)[2]
        assert image.tobytes() == files.picture(6)[0].tobytes()


def test_a_folder_with_splits(tmp_path):
    files.write_classes(tmp_path / "train", 24)
    files.write_classes(tmp_path / "val", 8)
    options = {"data": str(tmp_path), "val": None, "image_column": None, "label_column": None}
    source = Source(options | {"val_images": 100, "seed": 0})
    assert (len(source.train), len(source.val)) == (24, 8)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"rho": 9.0}, "--rho below log(4) = 1.386"),
        ({"risk_level": 1.0}, "no --risk_level with --risk mean"),
        ({"risk": "cvar", "risk_level": 2.0}, "alpha"),
        ({"tau_min": 3.0, "tau_max": 1.0}, "temperature bounds"),
        ({"flip": 2.0}, "--flip"),
        ({"crop": 0.0}, "--crop"),
        ({"image_size": 2}, "--image_size"),
        ({"precision": "fp16"}, "--precision fp16"),
        ({"model": "resnet51x"}, "Type --model resnet51"),
        ({"weights": "./nothing.pt"}, "--weights"),
        ({"val": "./nothing"}, "--val"),
    ],
)
def test_options_out_of_range(folder, tmp_path, options, part):
    if "precision" in options and torch.cuda.is_available():
        pytest.skip("a device that computes in float16")
    with pytest.raises(ValueError, match=r"(?s)expected .*received") as raised:
        VISION.commands["fit"](tmp_path / "run", data=str(folder), **options)
    assert part in sentence(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_classes(tmp_path, capsys):
    files.write_captions(tmp_path / "flat", 3)
    assert main(command(tmp_path / "flat", tmp_path / "run")) == 2
    assert "at least two classes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fit", "eval", "view"])
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit):
        main(["vision", name, "--help"])
    said = capsys.readouterr().out
    assert VISION.examples[name].strip() in said
    for option in re.findall(
        r" --([a-z]\w*)", VISION.examples[name].replace("torchrun --nproc-per-node 8", "")
    ):
        assert f"--{option} " in said.partition("examples")[0], option
