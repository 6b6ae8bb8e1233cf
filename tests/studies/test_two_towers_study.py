"""The study on glyph-caption pairs, and what all studies share: statistics, trials, resuming, summaries."""

import json
import math
import statistics

import pytest

for package in ("rich", "scipy", "matplotlib", "PIL"):
    pytest.importorskip(package)

from benchmarks.studies.common.paired import against, holm  # noqa: E402
from benchmarks.studies.common.runs import chosen  # noqa: E402
from benchmarks.studies.common.summary import Summary, summarise  # noqa: E402
from benchmarks.studies.two_towers import compare, tables  # noqa: E402


def test_paired_comparisons_are_those_of_the_textbook():
    ours, theirs = [3.0, 4.0, 6.0, 5.0, 7.5], [2.0, 3.5, 4.0, 4.5, 5.5]
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = against(ours, {"one": theirs, "same": [x - 1e-9 * i for i, x in enumerate(ours)]})["one"]
    assert found.mean == pytest.approx(statistics.mean(gains))
    assert found.effect == pytest.approx(statistics.mean(gains) / statistics.stdev(gains))
    half = 2.7764451 * statistics.stdev(gains) / math.sqrt(5)  # 97.5 % quantile of t with 4 degrees
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), rel=1e-6)
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_the_best_trial_is_the_lowest():
    tuned = [
        {"method": m, "chosen_by": v, "options": {"lr": v}} for m, v in [("x", 2.0), ("x", 1.0), ("y", 3.0)]
    ]
    assert chosen(tuned) == {"x": {"lr": 1.0}, "y": {"lr": 3.0}}


def test_a_summary_compares_every_pair_in_both_directions():
    values = {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 3.0], "c": [0.0, 1.0, 3.0]}
    runs = [
        {"method": method, "seed": seed, "options": {}, "x": x}
        for method, column in values.items()
        for seed, x in reversed(list(enumerate(column)))
    ]
    summary = summarise(runs, lambda run: {"x": run["x"]}, compared=("x",), lowest=("x",))
    assert summary.methods == list(values)
    assert summary["a"]["x"] == pytest.approx([statistics.mean(values["a"]), statistics.stdev(values["a"])])
    assert summary["a"]["x_min"] == 1.0
    gains = [a - b for a, b in zip(values["a"], values["b"], strict=True)]
    for sign, one, other in ((1, "a", "b"), (-1, "b", "a")):
        found = summary.minus(one, other, "x")
        assert found.mean == pytest.approx(sign * statistics.mean(gains))
        assert found.std_error == pytest.approx(statistics.stdev(gains) / math.sqrt(3))
        assert found.interval[0] < found.mean < found.interval[1]
        assert (found.higher, found.lower) == ((1, 1))
    assert summary.minus("c", "a", "x").p == 0.0  # always lower by one
    raw = {method: summary.minus(method, "a", "x").p for method in "bc"}
    assert {m: each.p for m, each in summary.family("a", "x").items()} == holm(raw)


def test_methods_with_other_seeds_are_not_paired():
    seeds = {"a": (0, 1), "b": (0, 2), "c": (0, 1)}
    runs = [
        {"method": method, "seed": seed, "options": {}, "x": float(seed)}
        for method, each in seeds.items()
        for seed in each
    ]
    summary = summarise(runs, lambda run: {"x": run["x"]}, compared=("x",))
    assert [(row["method"], row["minus"]) for row in summary.differences] == [("c", "a")]


def test_a_metric_that_is_undefined_in_one_run_is_undefined():
    runs = [{"method": "a", "seed": s, "options": {}, "x": x} for s, x in enumerate((1.0, math.nan))]
    assert summarise(runs, lambda run: {"x": run["x"]})["a"]["x"] == [None, None]


def test_shuffled_captions_are_as_many_as_were_asked_for():
    from benchmarks.studies.two_towers.data import captions, load

    train = load(400, 0).splits["train"]
    names, wrong = captions(train, 0.4, seed=0)
    assert sorted(names.tolist()) == sorted(train.name_index.tolist())
    assert 0.3 < wrong.double().mean() <= 0.4
    assert not captions(train, 0.0, seed=0)[1].any()


@pytest.mark.slow
def test_a_study_from_trials_to_table_and_again_from_stored_runs(one_thread, tmp_path, monkeypatch):
    setting = {"size": 300, "batch": 50, "epochs": 1}
    monkeypatch.setattr(compare, "TUNED_AT", 300)
    words = ["--out", str(tmp_path), "--methods", "infonce", compare.OURS, "--seeds", "0", "--workers", "1"]
    options = compare.arguments("text", compare.TABLE, "unused").parse_args(words)
    tests = compare.study(setting, options)
    assert {test["method"] for test in tests} == {
        "infonce",
        "tempnet-ours",
        "same-mean-ours",
        "same-path-ours",
    }
    ours, same = (
        next(t for t in tests if t["method"] == method) for method in ("tempnet-ours", "same-path-ours")
    )
    assert ours["taus"] == same["taus"]  # the control follows the path
    assert set(ours["gap"]) == {"image", "text"}
    assert 0 <= ours["metrics"]["zero_shot"] <= 100
    summary = summarise(tests, tables.metrics, compared=("mean_r1",))
    assert tables.table(summary, compare.OURS).count("\n") == 5
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")}
    assert json.dumps(compare.study(setting, options)) == json.dumps(tests)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json")} == files


@pytest.mark.slow
def test_results_replace_their_own_section_alone(one_thread, tmp_path, monkeypatch, capsys):
    from benchmarks.harness import results

    monkeypatch.setattr(compare, "TUNED_AT", 300)
    file = tmp_path / "two_towers.json"
    results.save(file, "title", "other", {"records": [{"method": "x", "value": math.nan}]})
    words = ["--out", str(tmp_path), "--methods", "infonce", "--seeds", "0", "1", "--workers", "1"]
    options = compare.arguments("text", compare.TABLE, "unused").parse_args(words)
    compare.compared({"size": 300, "batch": 50, "epochs": 1}, options)
    sections = results.load(file)
    assert sections["other"] == {"records": [{"method": "x", "value": None}]}
    summary = Summary(**sections["300x50x1"])
    assert summary.methods == ["infonce"]
    assert summary["infonce"]["seeds"] == 2
    assert summary.about["seeds"] == [0, 1]
    assert tables.table(summary) in capsys.readouterr().out
    assert tables.table(summary) in (tmp_path / "300x50x1.md").read_text()
    assert max(map(len, file.read_text().splitlines())) < 1_000  # one line for each record


def test_options_can_be_those_of_published_results():
    known = compare._known("8000x128x10")
    assert known["tempnet-ours"] == {"lr": 0.004, "rho": 2.5}
    assert compare._known(None) == {}
    with pytest.raises(SystemExit, match="expected a section"):
        compare._known("8000x1")


def test_every_method_builds_and_has_four_trials():
    from glyphs.model import TextEncoder, image_encoder

    import dro_temp as dt
    from benchmarks.studies.two_towers.ablation_methods import ABLATION
    from benchmarks.studies.two_towers.methods import METHODS, Schedule

    for method in [*METHODS.values(), *ABLATION.values()]:
        host = dt.hosts.TwoTower(image_encoder(), TextEncoder(10))
        assert isinstance(method.build(host, Schedule(8_000, 10, 62), method.trials()[0]), dt.Objective)
        assert len(method.trials()) == 2 * len(method.rates)
