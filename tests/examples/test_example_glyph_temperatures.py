"""The example looks at a run that was trained, and says what to type where there is none."""

import dataclasses
import shutil

import pytest
import torch
from isolation import imported_example

pytest.importorskip("tyro")
pytest.importorskip("matplotlib")

TINY = ["--train-size", "256", "--eval-size", "200", "--batch-size", "32", "--epochs", "2", "--rho", "1.0"]


@pytest.fixture(scope="module")
def example():
    with imported_example("glyph_temperatures") as module:
        yield module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    with imported_example("clip_glyphs") as training:
        assert training.main([*TINY, "--methods", "tempnet", "--out", str(out)]) == 0
    return out


def test_help_mentions_every_option_and_what_to_run_first(example, capsys):
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(example.Options):
        assert "--" + field.name in shown
    assert "examples/clip_glyphs.py first" in " ".join(shown.split())


def test_writes_a_table_and_four_pictures(example, trained, capsys):
    before = {path: path.read_bytes() for path in (trained / "checkpoints").iterdir()}
    assert example.main(["--run", str(trained), "--k", "3", "--named", "2"]) == 0
    shown = capsys.readouterr().out
    table = (trained / "temperatures" / "table.md").read_text(encoding="utf-8")
    assert shown.startswith(table)
    *lines, _, agree = table.splitlines()
    assert agree.startswith("An image and its name")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert {len(row) for row in rows} == {8}
    assert [row[0] for row in rows[2:]] == [
        "images, by name, before training", "names, by letter, before training", "images, by name",
        "names, by letter",
    ]  # fmt: skip
    for row in rows[2:]:
        icc, *ends = (float(x.strip("[],")) for x in row[3].split())
        assert -1 <= ends[0] <= icc <= ends[1] <= 1
        assert 0 < float(row[4]) <= 1
    assert float(rows[4][2]) != float(rows[2][2])  # training changed something
    for name in ("images_by_name", "names_by_letter", "images_by_duplicates", "extremes"):
        path = trained / "temperatures" / f"{name}.png"
        assert path.read_bytes().startswith(b"\x89PNG")
        assert str(path) in shown
    assert {path: path.read_bytes() for path in (trained / "checkpoints").iterdir()} == before


def test_the_temperatures_are_those_that_training_ended_with(example, trained):
    began, ended = example.finished(trained, 0)
    state = torch.load(trained / "checkpoints" / "tempnet-seed0.pt", weights_only=True)
    for view, tau in state["result"]["tau"].items():
        torch.testing.assert_close(ended.temperatures("test_seen")[view], tau)
        assert not torch.allclose(began.temperatures("test_seen")[view], tau)
    number, letters = example.letters(ended.data.splits["test_seen"])
    for name, i in zip(ended.data.splits["test_seen"].names, number.tolist(), strict=True):
        assert name == letters[i] or name.startswith(f"{letters[i]} with ")


@pytest.mark.slow
def test_says_what_to_run_first(example, trained, tmp_path, capsys):
    def said(folder, *options):
        assert example.main(["--run", str(folder), *options]) == 2
        text = capsys.readouterr().err
        assert "expected" in text
        assert "received" in text
        return text

    nothing = said(tmp_path / "nothing")
    assert (
        f"Run: python examples/clip_glyphs.py --methods tempnet --seeds 0 --out {tmp_path / 'nothing'} first"
        in nothing
    )
    assert not (tmp_path / "nothing").exists()
    assert "--seeds 7" in said(trained, "--seed", "7")

    path = tmp_path / "checkpoints" / "tempnet-seed0.pt"
    shutil.copytree(trained / "checkpoints", path.parent)
    state = torch.load(path, weights_only=True)
    torch.save(state | {"result": None, "epoch": 1}, path)
    assert "stopped in epoch 2. Run: python examples/clip_glyphs.py --resume" in said(tmp_path)
    state["objective"].popitem()
    torch.save(state, path)
    assert "other parameters" in said(tmp_path)
    assert "k of at most" in said(trained, "--k", "100000")
