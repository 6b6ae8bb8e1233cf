"""The example retrieves better in spite of wrong captions, finds them, and draws the worst."""

import csv
import re

import pytest
from isolation import imported_example

for package in ("tyro", "rich", "matplotlib", "fontTools"):
    pytest.importorskip(package)


@pytest.mark.slow
def test_what_it_says_and_draws(tmp_path, capsys):
    with imported_example("find_wrong_captions") as example:
        example.run(example.Options(size=3000, epochs=8, out=tmp_path))
    said = capsys.readouterr().out
    mean, best_case = (float(x) for x in re.findall(r"(\d+\.\d) % of the test images find", said))
    assert best_case > mean
    hundred, all_of_them = (float(x) for x in re.findall(r"(\d+\.\d) %(?: are|$)", said.splitlines()[-1]))
    assert hundred > 90.0
    assert all_of_them > 60.0
    with (tmp_path / "suspects.csv").open() as file:
        assert len({row["sample"] for row in csv.DictReader(file)}) == 3000
    assert (tmp_path / "suspects.png").read_bytes().startswith(b"\x89PNG")


def test_a_tiny_run(tmp_path, capsys):
    with imported_example("find_wrong_captions") as example:
        example.run(example.Options(size=192, batch=64, epochs=1, out=tmp_path))
    assert "of 192 captions are wrong" in capsys.readouterr().out
    assert (tmp_path / "suspects.csv").exists()


def test_help_mentions_every_option(capsys):
    with imported_example("find_wrong_captions") as example:
        import tyro

        with pytest.raises(SystemExit) as stopped:
            tyro.cli(example.Options, prog="find_wrong_captions.py", args=["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for option in ("size", "wrong", "rho", "tau", "epochs", "batch", "lr", "seed", "out", "quick"):
        assert f"--{option}" in said
