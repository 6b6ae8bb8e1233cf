"""The study of wrong labels: its data, its measures, and the command from trials to table and plot."""

import dataclasses
import json
import sys

import pytest
import torch

pytest.importorskip("sklearn")


def test_labels_of_the_training_part_alone_are_redrawn(studies):
    from wrong_labels.data import PROBLEMS

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


def test_half_of_the_classes_are_rare(studies):
    from wrong_labels.data import PROBLEMS

    counts = PROBLEMS["digits-100-to-3"].splits(0.0, 3).right.bincount(minlength=10)
    assert sorted(counts.tolist())[:5] == [3] * 5
    assert min(sorted(counts.tolist())[5:]) > 80


def test_scripts_are_tested_on_images_that_are_not_trained_on(studies):
    from wrong_labels.data import PROBLEMS

    splits = PROBLEMS["scripts"].splits(0.3, 0)
    assert splits.train[0].shape == (2_000, 1, 32, 32)
    assert 0.5 < splits.train[0].max() <= 1.0
    assert PROBLEMS["scripts"].body()(splits.train[0][:2]).shape == (2, 64)
    assert len(splits.test[1]) == 5_000


@pytest.mark.filterwarnings(
    "ignore::dro_temp.TemperatureWarning"
)  # a network of a few steps knows no label yet
def test_every_arm_trains_and_says_what_tells_wrong_labels(studies, monkeypatch):
    from wrong_labels import training
    from wrong_labels.arms import ARMS, BOUND, IMBALANCE_ARMS

    _short(monkeypatch)
    for name, arm in (ARMS | IMBALANCE_ARMS).items():
        assert len(arm.trials()) == 4
        found = training.run(name, 0, arm.trials()[1], tuning=False, data="digits", noise=0.3)
        metrics = found["metrics"]
        assert -100 <= found["chosen_by"] <= 0 <= metrics["accuracy"] <= 100
        assert metrics["nll_constant"] <= metrics["nll_one"] + 0.1
        told = {key.removeprefix("auroc_") for key in metrics if key.startswith("auroc")}
        predicted = arm.predictor is not None and name not in ("label smoothing", "robust, constant")
        more = {"weight"} if arm.risk else {"tau"} if predicted else set()
        assert told == (set() if name == BOUND else {"loss"} | more), name
    trial = training.run(name, 0, arm.trials()[1], tuning=True, data="digits", noise=0.3)
    assert trial == {"chosen_by": found["chosen_by"]}


def test_the_command_from_trials_to_table_and_plot(studies, tmp_path, monkeypatch, capsys):
    import noisy_labels

    _short(monkeypatch)
    arms = ["cross-entropy", "label smoothing", "best case in a KL ball"]
    words = ["--data", "digits", "--noise", "0", "0.3", "--seeds", "0", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["noisy_labels.py", *words, "--arms", *arms])
    noisy_labels.main()
    found = json.loads((tmp_path / "digits-0.3.json").read_text())
    assert {test["arm"] for test in found["tests"]} == set(found["chosen"]) == set(arms)
    rows = (tmp_path / "digits-0.3.md").read_text().splitlines()
    assert len(rows) == 5
    assert {"minus label smoothing", "weight of the wrong (%)"} < {
        title.strip() for title in rows[0].split("|")
    }
    assert "AUROC: τ" not in rows[0]  # nobody has it
    assert "| 0 % redrawn | 30 % redrawn |" in (tmp_path / "digits.md").read_text()
    assert (tmp_path / "noisy_labels.png").stat().st_size > 10_000
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.json")}
    before = capsys.readouterr().out
    noisy_labels.main()  # from what was kept
    assert capsys.readouterr().out == before
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.json")} == kept


def _short(monkeypatch):
    from wrong_labels.data import PROBLEMS

    monkeypatch.setitem(PROBLEMS, "digits", dataclasses.replace(PROBLEMS["digits"], epochs=1))
