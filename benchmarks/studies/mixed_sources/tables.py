"""Summary and table of a comparison on mixed sources."""

from collections.abc import Mapping
from typing import Any

from benchmarks.studies.common.summary import Summary
from benchmarks.studies.common.tables import cell, cells, markdown, named

TITLE = "Retrieval after training on pairs from several sources with wrong captions: R@1 in percent"
REFERENCE, BALL = "sogclr", "optimistic"
SIGNALS = {"auroc_loss": "AUROC: loss", "auroc_weight": "weight", "auroc_tau": "τ"}


def metrics(run: Mapping[str, Any]) -> dict[str, float]:
    """Test metrics, and how well each signal detects wrong captions."""
    test, signals = run["metrics"], run["signals"]
    values = {name: x for name, x in test.items() if name == "mean_r1" or name.startswith("r1_source")}
    values |= {"noisy_validation": run["noisy_validation"], "tau_last": run["taus"][-1]}
    return values | signals


def table(summary: Summary) -> str:
    """One row for each method, with its difference from the robust loss at one temperature."""
    gains = summary.family(REFERENCE, "mean_r1")
    sources = len(summary.about["noise"])
    of_sources = [f"{100 * share:g} % wrong" for share in summary.about["noise"]]
    header = ["method", "chosen", "mean R@1", f"minus {REFERENCE}", *of_sources, *SIGNALS.values()]
    rows = []
    for record in summary.records:
        gain = gains.get(record["method"])
        row = [record["method"], named(record["options"]), cell(record["mean_r1"])]
        row += ["" if gain is None else gain.text()]
        row += cells(record, **{f"r1_source{k}": 1 for k in range(sources)})
        rows.append([*row, *cells(record, **dict.fromkeys(SIGNALS, 3))])
    return markdown([*header], rows, words=2)
