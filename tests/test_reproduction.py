"""The parts of the reproduction studies: statistics, trials, resuming, the captions that are shuffled."""

import json
import math
import statistics

import pytest


def test_paired_comparisons_are_those_of_the_textbook(studies):
    from reproduction.paired import against, holm

    ours, theirs = [3.0, 4.0, 6.0, 5.0, 7.5], [2.0, 3.5, 4.0, 4.5, 5.5]
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = against(ours, {"one": theirs, "same": [x - 1e-9 * i for i, x in enumerate(ours)]})["one"]
    assert found.mean == pytest.approx(statistics.mean(gains))
    assert found.effect == pytest.approx(statistics.mean(gains) / statistics.stdev(gains))
    half = 2.7764451 * statistics.stdev(gains) / math.sqrt(5)  # 97.5 % quantile of t with 4 degrees
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), rel=1e-6)
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_the_best_trial_is_the_lowest(studies):
    from reproduction.study import chosen

    tuned = [
        {"arm": a, "chosen_by": v, "options": {"lr": v}} for a, v in [("x", 2.0), ("x", 1.0), ("y", 3.0)]
    ]
    assert chosen(tuned) == {"x": {"lr": 1.0}, "y": {"lr": 3.0}}


def test_shuffled_captions_are_as_many_as_were_asked_for(studies):
    from glyph_pairs.data import captions, load

    train = load(400, 0).splits["train"]
    names, wrong = captions(train, 0.4, seed=0)
    assert sorted(names.tolist()) == sorted(train.name_index.tolist())
    assert 0.3 < wrong.double().mean() <= 0.4
    assert not captions(train, 0.0, seed=0)[1].any()


def test_a_study_from_trials_to_table_and_again_from_what_was_kept(studies, tmp_path, monkeypatch):
    import clip_table
    from glyph_pairs.tables import table

    setting = {"size": 300, "batch": 50, "epochs": 1}
    monkeypatch.setattr(clip_table, "TUNED_AT", 300)
    monkeypatch.setattr(
        "sys.argv",
        ["clip_table.py", "--out", str(tmp_path), "--arms", "infonce", clip_table.OURS, "--seeds", "0"],
    )
    options = clip_table.options_of("text", clip_table.TABLE, "unused")
    found = clip_table.study(options.arms, setting, options)
    assert {test["arm"] for test in found["tests"]} == {
        "infonce",
        "tempnet-ours",
        "same-mean-ours",
        "same-path-ours",
    }
    ours, same = (
        next(t for t in found["tests"] if t["arm"] == arm) for arm in ("tempnet-ours", "same-path-ours")
    )
    assert ours["taus"] == same["taus"]  # the control follows the path
    assert set(ours["gap"]) == {"image", "text"}
    assert 0 <= ours["metrics"]["zero_shot"] <= 100
    written = table(found["chosen"], found["tests"], clip_table.OURS)
    assert written.count("\n") == 5
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert json.dumps(clip_table.study(options.arms, setting, options)) == json.dumps(found)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")} == files


def test_every_arm_builds_and_has_four_trials(studies):
    from glyph_pairs.ablation import ABLATION
    from glyph_pairs.arms import ARMS, Schedule
    from glyphs.model import TextEncoder, image_encoder

    import dro_temp as dt

    for arm in [*ARMS.values(), *ABLATION.values()]:
        host = dt.hosts.TwoTower(image_encoder(), TextEncoder(10))
        assert isinstance(arm.build(host, Schedule(8_000, 10, 62), arm.trials()[0]), dt.Objective)
        assert len(arm.trials()) == 2 * len(arm.rates)
