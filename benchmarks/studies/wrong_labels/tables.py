"""Summary and tables of the study of wrong labels."""

from collections.abc import Mapping
from typing import Any

from benchmarks.studies.common.paired import Paired
from benchmarks.studies.common.summary import Summary
from benchmarks.studies.common.tables import cell, cells, markdown, named
from benchmarks.studies.wrong_labels.methods import BASELINE

TITLE = "Learning with wrong labels: accuracy, ECE and shares in percent; AUROC as a detector of wrong labels"
#: Columns after the accuracies: title and decimals of each metric.
COLUMNS = {
    "nll_one": ("NLL: τ = 1", 2),
    "nll_constant": ("best constant", 2),
    "nll_own": ("own τ", 2),
    "ece_one": ("ECE (%): τ = 1", 0),
    "ece_constant": ("best constant", 0),
    "ece_own": ("own τ", 0),
    "auroc_tau": ("AUROC: τ", 2),
    "auroc_weight": ("weight", 2),
    "auroc_loss": ("loss", 2),
    "tau_wrong": ("mean τ: wrong", 2),
    "tau_right": ("right", 2),
    "weight_of_wrong": ("weight of the wrong (%)", 1),
}


def metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """All that was measured."""
    return dict(run["metrics"])


def table(summary: Summary) -> str:
    """One row for each method; columns without any number are left out."""
    digits = {
        name: places for name, (_, places) in COLUMNS.items() if any(name in r for r in summary.records)
    }
    titles = [COLUMNS[name][0] for name in digits]
    header = ["method", "chosen", "accuracy (%)", "balanced", f"minus {BASELINE}", *titles]
    gains = summary.family(BASELINE, "accuracy")
    rows = []
    for record in summary.records:
        row = [record["method"], named(record["options"]), *cells(record, accuracy=1, balanced=1)]
        row += [_text(gains.get(record["method"])), *cells(record, **digits)]
        rows.append(row)
    return markdown(header, rows, words=2)


def overview(levels: Mapping[float, Summary]) -> str:
    """Accuracy at each share of wrong labels; bold where it is above label smoothing, p < 0.05 after correction."""
    header = ["accuracy (%)", *(f"{100 * noise:g} % redrawn" for noise in sorted(levels))]
    methods = dict.fromkeys(m for noise in sorted(levels) for m in levels[noise].methods)
    columns = [_accuracies(levels[noise]) for noise in sorted(levels)]
    return markdown(header, ([method, *(of.get(method, "") for of in columns)] for method in methods))


def _accuracies(summary: Summary) -> dict[str, str]:
    gains, texts = summary.family(BASELINE, "accuracy"), {}
    for record in summary.records:
        text, gain = cell(record["accuracy"]), gains.get(record["method"])
        texts[record["method"]] = f"**{text}**" if gain and gain.mean > 0 and gain.p < 0.05 else text
    return texts


def _text(gain: Paired | None) -> str:
    return "" if gain is None else gain.text(digits=1)
