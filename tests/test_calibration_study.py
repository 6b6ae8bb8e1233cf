"""The study of temperatures of a finished classifier: from training to its table, twice."""

import json
import sys

import pytest

pytest.importorskip("sklearn")


def test_the_command_from_training_to_table(studies, tmp_path, monkeypatch, capsys):
    import calibration

    arms = {name: (build, trials[:1]) for name, (build, trials) in calibration.ARMS.items()}
    monkeypatch.setattr(calibration, "EPOCHS", 5)
    monkeypatch.setattr(calibration, "ARMS", arms)
    monkeypatch.setattr(sys, "argv", ["calibration.py", "--seeds", "0", "1", "--out", str(tmp_path)])
    calibration.main()
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert set(found) == set(calibration.SETTINGS)
    for runs in found.values():
        assert [run["seed"] for run in runs] == [0, 1]
        for run in runs:
            assert {"tau = 1", calibration.CONSTANT, *arms} < set(run["schemes"])
            assert run["options"] == {name: trials[0] for name, (_, trials) in arms.items()}
            assert run["schemes"][calibration.CONSTANT]["nll"] < run["schemes"]["tau = 1"]["nll"] + 0.05
    before = capsys.readouterr().out
    calibration.main()
    assert capsys.readouterr().out == before
