"""The example learns in spite of wrong labels, finds them, and draws the worst."""

import re

import pytest
from isolation import imported_example

for package in ("tyro", "sklearn", "matplotlib"):
    pytest.importorskip(package)


@pytest.mark.slow
def test_what_it_says_and_draws(tmp_path, capsys):
    with imported_example("find_wrong_labels") as example:
        example.run(example.Options(epochs=15, out=tmp_path))
    said = capsys.readouterr().out
    mean, best_case = (
        float(x) for x in re.findall(r"Risk: (\d+\.\d) % of the test images classified correctly", said)
    )
    assert best_case > mean + 1.0
    wrong, found = re.search(
        r"(\d+) labels are wrong; of as many with the lowest weights, (\d+\.\d) % are", said
    ).groups()
    assert 0.22 < int(wrong) / 1200 < 0.32
    assert float(found) > 90.0
    assert (tmp_path / "suspects.png").read_bytes().startswith(b"\x89PNG")


def test_help_mentions_every_option(capsys):
    with imported_example("find_wrong_labels") as example:
        import tyro

        with pytest.raises(SystemExit) as stopped:
            tyro.cli(example.Options, prog="find_wrong_labels.py", args=["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for option in ("wrong", "rho", "smoothing", "epochs", "lr", "seed", "out", "quick"):
        assert f"--{option}" in said
