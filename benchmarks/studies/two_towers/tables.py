"""Summary and table of a comparison on glyph-caption pairs."""

from collections.abc import Mapping
from typing import Any

from benchmarks.studies.common.paired import Paired
from benchmarks.studies.common.summary import Summary
from benchmarks.studies.common.tables import cell, cells, markdown, named

TITLE = "Retrieval on glyph-caption pairs: R@1, zero-shot accuracy and recovered share in percent"
COLUMNS = {
    "seen_i2n": "seen i→n",
    "seen_n2i": "seen n→i",
    "unseen_i2n": "unseen i→n",
    "unseen_n2i": "unseen n→i",
    "mean_r1": "mean R@1",
    "zero_shot": "zero-shot",
}


def metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """Test metrics, the recovered share of the optimum's gain (%), and the mean temperature of the last step."""
    test = run["metrics"]
    values = {
        f"{split}_{short}": test[f"test_{split}/{way}_r1"]
        for split in ("seen", "unseen")
        for short, way in (("i2n", "i2t"), ("n2i", "t2i"))
    }
    values |= {name: test[name] for name in ("mean_r1", "zero_shot")}
    values |= {f"recovered_{view}": 100 * gap["recovered"] for view, gap in (run.get("gap") or {}).items()}
    return values | {"tau_last": run["taus"][-1]}


def table(summary: Summary, ours: str = "tempnet-ours") -> str:
    """One row for each method, and our method minus each of the others."""
    gains = summary.family(ours, "mean_r1")
    header = ["method", "chosen", *COLUMNS.values(), "recovered (%): images, names", "τ: last mean"]
    rows = []
    for record in summary.records:
        method = record["method"]
        row = [method, named(record["options"]), *cells(record, **dict.fromkeys(COLUMNS, 1))]
        row += [_recovered(record), f"{record['tau_last'][0]:.3f}", _gain(gains.get(method))]
        rows.append(row)
    return markdown([*header, f"{ours} minus it"], rows, words=2)


def _recovered(record: Mapping[str, Any]) -> str:
    views = [name for name in ("recovered_image", "recovered_text") if name in record]
    return ", ".join(cell(record[name], digits=0) for name in views)


def _gain(theirs: Paired | None) -> str:
    """Ours minus theirs, with Cohen's d."""
    if theirs is None:
        return ""
    ours = -theirs
    interval, _, p = ours.text().partition(", p ")
    return f"{interval}, d {ours.effect:+.1f}, p {p}"
