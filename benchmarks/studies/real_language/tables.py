"""Tables of the study."""

from benchmarks.studies.common.summary import Summary
from benchmarks.studies.common.tables import cell, cells, markdown, named

TITLE = "SmolLM2-135M-Instruct, frozen, on text of five kinds: ECE in percent, NLL in nats per token"
KINDS = ("prose", "code", "questions", "tables", "german")


def table(section: str, summary: Summary) -> str:
    """One row for each method, or for each of its settings."""
    return {"temperatures": _temperatures, "borders": _borders, "sampling": _sampling}[section](summary)


def _temperatures(summary: Summary) -> str:
    header = ["temperature", "chosen on validation", "NLL", "minus constant per kind"]
    header += ["ECE (%)", "Brier", "mean τ", *(f"NLL, {kind}" for kind in KINDS)]
    rows = []
    for record in summary.records:
        difference = summary.minus(record["method"], "constant per kind", "nll")
        text = ""
        if difference is not None:
            text = "{:+.4f} [{:+.4f}, {:+.4f}]".format(difference.mean, *difference.interval)
        row = [record["method"], named(record["options"]), cell(record["nll"], digits=4), text]
        row += cells(record, ece=2, brier=4, tau_mean=3)
        rows.append([*row, *cells(record, **{f"nll_{kind}": 3 for kind in KINDS})])
    return markdown(header, rows, words=2)


def _sampling(summary: Summary) -> str:
    header = ["method", "setting", "parses (%)", "distinct-1", "distinct-2", "distinct-3", "self-BLEU"]
    header += ["log-likelihood, code", "log-likelihood, prose"]
    rows = []
    for record in summary.records:
        values = ("distinct_1", "distinct_2", "distinct_3", "self_bleu", "likelihood_code", "likelihood_prose")
        row = [record["method"], named(record["options"]), f"{record['parses']:.1f}"]
        rows.append([*row, *(f"{record[name]:.3f}" for name in values)])
    return markdown(header, rows, words=2)


def _borders(summary: Summary) -> str:
    header = ["tokens after the border", "number", "NLL, TempNet", "constant of this kind", "constant of the first kind"]
    header += ["moved to the second kind's mean"]
    rows = []
    for record in summary.records:
        numbers = (f"{record[name]:.3f}" for name in ("nll", "nll_constant", "nll_constant_of_first"))
        rows.append([record["method"], f"{record['tokens']:,}", *numbers, f"{record['moved']:.2f}"])
    return markdown(header, rows)
