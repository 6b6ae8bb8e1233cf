"""Summary and tables of the comparison of language models."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.studies.common.summary import Summary
from benchmarks.studies.common.tables import cell, cells, markdown, named

TITLE = "Perplexity and calibration of a two-layer GPT-2: ECE and recovered share in percent"
ONE, LIKELIHOOD, ROBUST, OPTIMUM = (
    "tau = 1",
    "best constant (likelihood)",
    "best constant (robust)",
    "optimum",
)
MODEL_SCHEMES = (ONE, LIKELIHOOD, ROBUST, OPTIMUM)


def metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """Of the test text at a method's own temperatures; perplexities also at 1 and at the best constant."""
    schemes = {scheme["name"]: scheme for scheme in run["schemes"]["test"]}
    own = schemes[run.get("scheme", "own")]
    values = {"perplexity": own["perplexity"], "ece": 100 * own["ece"], "recovered": 100 * own["recovered"]}
    quantiles = {float(level): tau for level, tau in own.get("tau_quantiles", {}).items()}
    ends = {f"tau_{round(100 * level)}": quantiles[level] for level in (0.05, 0.95) if level in quantiles}
    return {
        **values,
        "tau_mean": own["tau_mean"],
        **ends,
        "perplexity_one": schemes[ONE]["perplexity"],
        "perplexity_constant": schemes[LIKELIHOOD]["perplexity"],
    }


def with_model_schemes(tests: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs, after those of each temperature that a frozen model has without a network, as methods of their own."""
    tests = list(tests)
    same = [test for test in tests if test["method"] == tests[0]["method"]]
    schemes = [{**run, "method": s, "scheme": s, "options": {}} for s in MODEL_SCHEMES for run in same]
    return [*schemes, *tests]


def table(setting: str, summary: Summary) -> str:
    """One row for each method."""
    return (_frozen if setting == "frozen" else _trained)(summary)


def _frozen(summary: Summary) -> str:
    header = ["temperature", "chosen on validation", "perplexity", "ECE (%)", "recovered (%)", "mean τ"]
    digits = {"perplexity": 1, "ece": 1, "recovered": 1, "tau_mean": 3}
    rows = [[r["method"], named(r["options"]), *cells(r, **digits)] for r in summary.records]
    return markdown(header, rows, words=2)


def _trained(summary: Summary) -> str:
    header = ["trained with", "chosen on validation", "perplexity, own τ", "minus cross-entropy's, paired"]
    header += ["at τ = 1", "best constant", "ECE, own τ (%)", "mean τ", "τ, 5 to 95 % of tokens"]
    digits = {"perplexity_one": 1, "perplexity_constant": 1, "ece": 1, "tau_mean": 3}
    baseline = summary.methods[0]  # cross-entropy
    rows = []
    for record in summary.records:
        gain = summary.minus(record["method"], baseline, "perplexity")
        row = [record["method"], named(record["options"]), cell(record["perplexity"])]
        row += ["" if gain is None else cell((gain.mean, gain.std), sign="+", digits=2)]
        ends = [f"{record[name][0]:.3f}" for name in ("tau_5", "tau_95") if name in record]
        rows.append([*row, *cells(record, **digits), " to ".join(ends)])
    return markdown(header, rows, words=2)
