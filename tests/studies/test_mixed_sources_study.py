"""The study of mixed sources: its data, its methods, and the command from trials to table."""

import json
import sys

import pytest
import torch

for package in ("sklearn", "scipy", "rich", "matplotlib", "PIL"):
    pytest.importorskip(package)

from benchmarks.studies.mixed_sources import compare, training  # noqa: E402
from benchmarks.studies.mixed_sources.data import MARKS, Setting, mixture, noisy  # noqa: E402
from benchmarks.studies.mixed_sources.methods import METHODS, Facts, of_source  # noqa: E402

SMALL = Setting(size=600, batch=60, epochs=1)


def test_each_source_has_its_share_of_wrong_captions_and_its_mark():
    found = mixture(SMALL, 4)
    train = found.data.splits["train"]
    assert sorted(found.marks) == list(range(MARKS))
    for k, share in enumerate(SMALL.noise):
        of = found.source == k
        assert abs(of.double().mean() - 1 / 3) < 0.01
        # Some shuffled captions meet an image of the same name.
        assert share - 0.1 < found.wrong[of].double().mean() <= share + 0.01
        assert sorted(found.names[of].tolist()) == sorted(train.name_index[of].tolist())  # its own captions
        rows, columns = (found.images[of][:, :2] == 128).all(), (found.images[of][:, :, :2] == 128).all()
        assert (bool(rows), bool(columns)) == [(True, False), (False, True), (False, False)][found.marks[k]]
    assert torch.equal(found.wrong, found.names != train.name_index)
    assert mixture(SMALL, 5).marks != found.marks


def test_unmarked_images_are_the_plain_ones():
    found = mixture(Setting(size=600, batch=60, marked=False), 4)
    assert torch.equal(found.images, found.data.splits["train"].images)


def test_noisy_validation_keeps_images_and_shuffles_captions():
    found = mixture(SMALL, 4)
    pairs = found.data.splits["val_unseen"]
    shown = noisy(pairs, SMALL, found.marks, 4)
    right = [pairs.names[i] for i in pairs.name_index]
    assigned = [shown.names[i] for i in shown.name_index]
    assert sorted(assigned) == sorted(right)
    assert 0.2 < sum(a != b for a, b in zip(assigned, right, strict=True)) / len(right) < 0.4


def test_a_long_tail_has_few_names_with_most_of_the_pairs():
    counts = [
        mixture(setting, 1).names.bincount().sort(descending=True).values
        for setting in (Setting(size=600, batch=60), Setting(size=600, batch=60, long_tail=True))
    ]
    plain, tail = (int(count[:20].sum()) for count in counts)
    assert tail > 1.5 * plain


def test_an_oracle_holds_the_level_of_its_temperatures():
    noise = torch.tensor([0.0, 0.3, 0.7] * 10)
    tau = of_source(Facts(10, 96, noise, torch.ones(30)), 0.7)
    assert tau.log().mean().exp().item() == pytest.approx(0.1)
    assert tau[0] < tau[1] < tau[2]


def test_without_wrong_pairs_there_are_as_many_steps_of_right_ones():
    run = training.MixedTraining(METHODS["right-pairs-alone"], SMALL, 0, {"lr": 1e-3, "tau": 0.1})
    batches = run.batches()
    assert [len(batch) for batch in batches] == [60] * 10
    assert not run.mixture.wrong[torch.cat(batches)].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::dro_temp.TemperatureWarning")  # networks that have learned nothing yet
def test_every_method_trains_and_detects_wrong_captions(one_thread):
    for name, method in METHODS.items():
        assert len(method.trials()) == 6
        found = training.trained(method, SMALL, 0, method.trials()[0], tuning=False)
        assert -100 <= found["chosen_by"] <= 0 <= found["metrics"]["mean_r1"] <= 100
        assert {f"r1_source{k}" for k in range(3)} <= set(found["metrics"])
        assert len(found["taus"]) == 10
        assert ("auroc_weight" in found["signals"]) == ("optimistic" in name)
        trial = training.trained(method, SMALL, 0, method.trials()[0], tuning=True)
        assert set(found) - set(trial) == {"metrics", "signals"}
        assert trial["chosen_by"] == found["chosen_by"]


@pytest.mark.slow
def test_the_command_from_trials_to_table(one_thread, tmp_path, monkeypatch, capsys):
    words = ["--size", "600", "--batch", "60", "--epochs", "1", "--seeds", "0", "1", "--out", str(tmp_path)]
    methods = ["sogclr", "optimistic"]
    monkeypatch.setattr(sys, "argv", ["compare.py", *words, "--workers", "1", "--methods", *methods])
    compare.main()
    name = "600x60x1-wrong0-0.3-0.7"
    found = json.loads((tmp_path / "mixed_sources.json").read_text())["sections"][name]
    assert [record["method"] for record in found["records"]] == methods
    rows = (tmp_path / f"{name}.md").read_text().splitlines()
    assert "minus sogclr" in rows[0]
    assert len(rows) == 4
