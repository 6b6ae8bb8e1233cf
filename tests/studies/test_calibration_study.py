"""The study of temperatures of a finished classifier: from training to its table, twice."""

import json
import sys

import pytest

for package in ("sklearn", "scipy", "torchmetrics", "rich"):
    pytest.importorskip(package)

from benchmarks.studies.calibration import compare  # noqa: E402


def test_the_command_from_training_to_table(one_thread, tmp_path, monkeypatch, capsys):
    methods = {name: (build, trials[:1]) for name, (build, trials) in compare.METHODS.items()}
    monkeypatch.setattr(compare, "EPOCHS", 5)
    monkeypatch.setattr(compare, "METHODS", methods)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--seeds", "0", "1", "--out", str(tmp_path)])
    compare.main()
    found = json.loads((tmp_path / "calibration.json").read_text())["sections"]
    assert set(found) == set(compare.SETTINGS)
    for setting, section in found.items():
        assert section["about"]["seeds"] == [0, 1]
        names = {record["method"] for record in section["records"]}
        assert {"tau = 1", compare.CONSTANT, *methods} < names
        for seed in (0, 1):
            file = tmp_path / "runs" / f"{setting.replace(' ', '_')}-{seed}.json"
            run = json.loads(file.read_text())
            assert {"tau = 1", compare.CONSTANT, *methods} < set(run["schemes"])
            assert run["options"] == {name: trials[0] for name, (_, trials) in methods.items()}
            assert run["schemes"][compare.CONSTANT]["nll"] < run["schemes"]["tau = 1"]["nll"] + 0.05
    before = capsys.readouterr().out
    compare.main()
    assert capsys.readouterr().out == before
