"""The study of pairs with the same name: what each method is told, and the command from trials to table."""

import json
import sys

import pytest
import torch

for package in ("scipy", "rich", "matplotlib", "PIL"):
    pytest.importorskip(package)

from benchmarks.studies.false_negatives import compare  # noqa: E402
from benchmarks.studies.two_towers.data import Setting  # noqa: E402

SMALL = Setting(size=300, batch=100, epochs=1)


def test_methods_that_are_told_leave_pairs_of_one_name_out():
    index = torch.arange(100)
    for name, method in compare.METHODS.items():
        training = compare.GroupedTraining(method, SMALL, 0, method.trials()[0])
        assert len(method.trials()) == 4
        rows = training.objective.host(**training.batch(index))
        names = training.names[index]
        alike = (names[:, None] == names).sum(1) - 1
        assert alike.any()
        for view in rows.values():
            if name.endswith(compare.TOLD):
                assert torch.equal(view.support_sizes, 99 - alike)
            else:
                assert view.support_sizes is None


@pytest.mark.slow
def test_the_command_from_trials_to_table(one_thread, tmp_path, monkeypatch):
    words = ["--size", "300", "--batch", "100", "--epochs", "1", "--seeds", "0", "1", "--out", str(tmp_path)]
    methods = ["sogclr", "sogclr" + compare.TOLD]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words, "--workers", "1", "--methods", *methods])
    compare.main()
    found = json.loads((tmp_path / "false_negatives.json").read_text())["sections"][SMALL.name]
    assert [record["method"] for record in found["records"]] == methods
    rows = (tmp_path / f"{SMALL.name}.md").read_text().splitlines()
    assert "minus the same untold" in rows[0]
    assert rows[-1].rstrip(" |").count("[") == 2
