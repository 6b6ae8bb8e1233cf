"""Numbers with a spread or an interval in the documentation are those of `benchmarks/results/`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import results

ROOT = Path(__file__).resolve().parents[2]
#: Results that the tables of a page are made from.
PAGES = {
    "README.md": ("two_towers", "objective_overhead"),
    "docs/demo.md": ("two_towers", "objective_overhead"),
    "docs/reproduction.md": ("two_towers", "two_towers_ablation", "language_models"),
    "docs/training-temperatures.md": ("two_towers_ablation", "classifier_gap"),
    "docs/language-models.md": ("language_models",),
    "docs/real-language.md": ("real_language",),
    "docs/wrong-labels.md": ("wrong_labels",),
    "docs/wrong-captions.md": ("mixed_sources",),
    "docs/calibration.md": ("calibration",),
    "docs/self-supervised.md": ("self_supervised",),
    "docs/two-towers-libraries.md": ("hash_collisions",),
    "docs/streaming.md": ("streaming_lm", "streaming_pairs", "sample_state"),
    "docs/generation.md": ("generation",),
}
#: First cell of the header of tables whose small runs are not among the results.
ELSEWHERE = ("| risk |",)
NUMBER = r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?"
SPREAD = re.compile(rf"{NUMBER} ± {NUMBER}")
#: A difference or a ratio, which has decimals, and its interval.
INTERVAL = re.compile(rf"([-+]?\d+\.\d+)(?: %)? (\[{NUMBER}, {NUMBER}\])")


def _rows(page: str) -> Iterator[str]:
    """Rows of the page's tables, in plain characters."""
    header = ""
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        header = "" if not line.startswith("|") else header or line
        if header and not header.startswith(ELSEWHERE):
            yield line.replace("−", "-").replace("*", "")


def _sections(page: str) -> Iterator[dict[str, Any]]:
    for study in PAGES[page]:
        yield from results.load(results.RESULTS / f"{study}.json").values()


def _plain(text: str) -> str:
    """Without plus signs, and without the sign of a rounded zero."""
    return re.sub(r"-(?=0(?:\.0+)?(?![\d.]))", "", text.replace("+", ""))


def _spreads(page: str) -> dict[str, set[str]]:
    """All of a method's means and standard deviations, as a table may show them."""
    shown: dict[str, set[str]] = {}
    for section in _sections(page):
        statistics = [
            (record["method"], *value)
            for record in section.get("records", ())
            for value in record.values()
            if isinstance(value, list) and value[0] is not None
        ]
        for row in section.get("differences", ()):
            statistics += [(row["method"], row["mean"], row["std"]), (row["minus"], -row["mean"], row["std"])]
        for method, mean, std in statistics:
            texts = {_plain(f"{mean:.{digits}f} ± {std:.{digits}f}") for digits in range(5)}
            shown.setdefault(method, set()).update(texts)
    return shown


def _intervals(page: str) -> set[str]:
    """All differences with their confidence intervals, and all ratios with their quartiles."""
    triples = []
    for section in _sections(page):
        for row in section.get("differences", ()):
            mean, low, high = (row[key] for key in ("mean", "low", "high"))
            triples += [(mean, low, high), (-mean, -high, -low)]
        cases = section.get("cases", {"": section})
        contenders = [row for case in cases.values() for row in case.get("contenders", ())]
        triples += [(row["median"], row["q1"], row["q3"]) for row in contenders if "q1" in row]
    return {
        _plain("{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*(scale * x for x in triple), d=digits))
        for triple in triples
        for digits in range(4)
        for scale in (1, 100)
    }


@pytest.mark.parametrize("page", PAGES)
def test_spreads_of_tables_are_those_of_the_results(page):
    shown = _spreads(page)
    for row in _rows(page):
        found = {_plain(text) for text in SPREAD.findall(row)}
        assert found <= set().union(*shown.values()), row
        if len(found) > 2:
            assert any(found <= texts for texts in shown.values()), row


@pytest.mark.parametrize("page", PAGES)
def test_intervals_of_tables_are_those_of_the_results(page):
    shown = _intervals(page)
    for row in _rows(page):
        assert {_plain(" ".join(parts)) for parts in INTERVAL.findall(row)} <= shown, row


def test_results_files_are_as_they_are_written():
    for file in results.RESULTS.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert f"{results.dumps(json.loads(text))}\n" == text, file.name


def test_every_study_has_its_results_and_tables(capsys, monkeypatch):
    for package in ("scipy", "sklearn", "rich", "timm", "torchvision", "matplotlib", "transformers"):
        pytest.importorskip(package)
    from benchmarks.studies import show

    files = {file.stem for file in results.RESULTS.glob("*.json")}
    assert set(show.TABLES) <= files
    for study in show.TABLES:
        summaries = show.published(study)
        tables = dict(show.tables(study))
        assert set(summaries) <= set(tables)
        for section, summary in summaries.items():
            assert all(method in tables[section] for method in summary.methods)
    monkeypatch.setattr("sys.argv", ["show.py", "calibration"])
    show.main()
    shown = capsys.readouterr().out
    assert all(table in shown for table in dict(show.tables("calibration")).values())
    monkeypatch.setattr("sys.argv", ["show.py", "no-such-study"])
    with pytest.raises(SystemExit):
        show.main()
    assert "expected studies of calibration" in capsys.readouterr().err
