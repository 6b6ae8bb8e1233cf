"""The example runs, compares what it says, and leaves its diagram."""

import re

import pytest
from isolation import imported_example

for package in ("tyro", "sklearn", "torchmetrics", "matplotlib"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def example():
    """The example's module, imported as `python examples/calibrate_classifier.py` imports it."""
    with imported_example("calibrate_classifier") as module:
        yield module


def test_help_mentions_every_option(example, capsys):
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for option in ("wrong", "blotched", "noise", "epochs", "steps", "rho", "seed", "out", "quick"):
        assert f"--{option}" in said


def test_table_and_diagram(example, tmp_path, capsys):
    assert example.main(["--quick", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("597 rows, 10 classes: accuracy ")
    for name in ("tau = 1", "best constant", "TempNet, likelihood", "TempNet, robust"):
        assert re.search(rf"^\| {name} +\| +\d", said, re.M)
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_splits_share_no_digit_and_only_training_labels_are_wrong(example):
    parts = example.splits(example.Options(blotched=0.0))
    assert [len(labels) for _, labels in parts] == [800, 400, 597]
    every = [row.tobytes() for images, _ in parts for row in images.numpy()]
    digits = example.load_digits()
    true = {
        (row / 16).astype("float32").tobytes(): int(label)
        for row, label in zip(digits.data, digits.target, strict=True)
    }
    assert len(set(every)) == len(true) == len(every)
    wrong = [
        sum(true[row.tobytes()] != int(y) for row, y in zip(images.numpy(), labels, strict=True))
        for images, labels in parts
    ]
    assert 80 < wrong[0] < 210  # 0.2 * 0.9 of 800 are 144
    assert wrong[1:] == [0, 0]


def test_refuses_a_radius_that_is_too_large(example, tmp_path, capsys):
    assert example.main(["--quick", "--rho", "3", "--out", str(tmp_path)]) == 2
    assert "calibrate_classifier.py: expected rho < log m" in capsys.readouterr().err
