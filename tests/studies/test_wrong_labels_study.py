"""The study of wrong labels: its data, its measures, and the command from trials to table and plot."""

import dataclasses
import json
import sys

import pytest
import torch

for package in ("sklearn", "scipy", "rich", "matplotlib"):
    pytest.importorskip(package)

from benchmarks.studies.wrong_labels import compare, training  # noqa: E402
from benchmarks.studies.wrong_labels.data import PROBLEMS  # noqa: E402
from benchmarks.studies.wrong_labels.methods import BOUND, IMBALANCE_METHODS, METHODS  # noqa: E402


def test_labels_of_the_training_part_alone_are_redrawn():
    for noise in (0.0, 0.4):
        splits = PROBLEMS["digits"].splits(noise, 7)
        wrong = (splits.train[1] != splits.right).double().mean()
        assert abs(wrong - 0.9 * noise) < 0.04  # a redrawn label is right by chance in a tenth of the cases
    clean, noisy = (PROBLEMS["digits"].splits(noise, 7) for noise in (0.0, 0.4))
    for part in ("validation", "test"):
        for a, b in zip(getattr(clean, part), getattr(noisy, part), strict=True):
            assert torch.equal(a, b)
    alone = noisy.right_alone()
    assert torch.equal(alone.train[1], alone.right)
    assert len(alone.right) == int((noisy.train[1] == noisy.right).sum())


def test_half_of_the_classes_are_rare():
    counts = PROBLEMS["digits-100-to-3"].splits(0.0, 3).right.bincount(minlength=10)
    assert sorted(counts.tolist())[:5] == [3] * 5
    assert min(sorted(counts.tolist())[5:]) > 80


def test_scripts_are_tested_on_images_that_are_not_trained_on():
    splits = PROBLEMS["scripts"].splits(0.3, 0)
    assert splits.train[0].shape == (2_000, 1, 32, 32)
    assert 0.5 < splits.train[0].max() <= 1.0
    assert PROBLEMS["scripts"].body()(splits.train[0][:2]).shape == (2, 64)
    assert len(splits.test[1]) == 5_000


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::dro_temp.TemperatureWarning"
)  # an untrained network gives all rows one temperature
def test_every_method_trains_and_detects_wrong_labels(monkeypatch):
    _short(monkeypatch)
    for name, method in (METHODS | IMBALANCE_METHODS).items():
        assert len(method.trials()) == 4
        found = training.run(name, 0, method.trials()[1], tuning=False, data="digits", noise=0.3)
        metrics = found["metrics"]
        assert -100 <= found["chosen_by"] <= 0 <= metrics["accuracy"] <= 100
        assert metrics["nll_constant"] <= metrics["nll_one"] + 0.1
        detectors = {key.removeprefix("auroc_") for key in metrics if key.startswith("auroc")}
        predicted = method.predictor is not None and name not in ("label smoothing", "robust, constant")
        more = {"weight"} if method.risk else {"tau"} if predicted else set()
        assert detectors == (set() if name == BOUND else {"loss"} | more), name
    trial = training.run(name, 0, method.trials()[1], tuning=True, data="digits", noise=0.3)
    assert trial == {"chosen_by": found["chosen_by"]}


def test_the_command_from_trials_to_table_and_plot(one_thread, tmp_path, monkeypatch, capsys):
    _short(monkeypatch)
    methods = ["cross-entropy", "label smoothing", "best case in a KL ball"]
    words = ["--data", "digits", "--noise", "0", "0.3", "--seeds", "0", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words, "--workers", "1", "--methods", *methods])
    compare.main()
    found = json.loads((tmp_path / "wrong_labels.json").read_text())["sections"]["digits-0.3"]
    assert {record["method"] for record in found["records"]} == set(methods)
    assert all(set(record["options"]) > {"lr"} for record in found["records"])
    rows = (tmp_path / "digits-0.3.md").read_text().splitlines()
    assert len(rows) == 5
    assert {"minus label smoothing", "weight of the wrong (%)"} < {
        title.strip() for title in rows[0].split("|")
    }
    assert "AUROC: τ" not in rows[0]  # no method has it
    assert "| 0 % redrawn | 30 % redrawn |" in (tmp_path / "digits.md").read_text()
    assert (tmp_path / "wrong_labels.png").stat().st_size > 10_000
    stored = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.json")}
    before = capsys.readouterr().out
    compare.main()  # from stored runs
    assert capsys.readouterr().out == before
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.json")} == stored


def _short(monkeypatch):
    monkeypatch.setitem(PROBLEMS, "digits", dataclasses.replace(PROBLEMS["digits"], epochs=1))
