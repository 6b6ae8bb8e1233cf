"""Tables of the study."""

from benchmarks.studies.common.paired import Paired
from benchmarks.studies.common.summary import Summary
from benchmarks.studies.common.tables import cell, cells, markdown, named

TITLE = "SmolLM2-135M-Instruct, frozen, on text of five kinds: ECE in percent, NLL in nats per token"
KINDS = ("prose", "code", "questions", "tables", "german")


def table(section: str, summary: Summary) -> str:
    """One row for each method, or for each of its settings."""
    return {"temperatures": _temperatures, "borders": _borders, "sampling": _sampling}[section](summary)


def _temperatures(summary: Summary) -> str:
    header = ["temperature", "chosen on validation", "NLL", "minus constant per kind", "p", "ECE (%)"]
    header += ["minus τ = 1", "Brier", "mean τ"]
    family = summary.family("constant per kind", "nll")
    rows = []
    for record in summary.records:
        method = record["method"]
        row = [method, named(record["options"]), cell(record["nll"], digits=4)]
        row += [_difference(family.get(method), 3), f"{family[method].p:.1g}" if method in family else ""]
        row += [*cells(record, ece=2), _difference(summary.minus(method, "tau = 1", "ece"), 2)]
        rows.append([*row, *cells(record, brier=4, tau_mean=3)])
    kinds = [[r["method"], *cells(r, **{f"nll_{kind}": 3 for kind in KINDS})] for r in summary.records]
    errors = [[r["method"], *cells(r, **{f"ece_{kind}": 1 for kind in KINDS})] for r in summary.records]
    return "\n\n".join(
        (
            markdown(header, rows, words=2),
            markdown(["NLL", *KINDS], kinds),
            markdown(["ECE (%)", *KINDS], errors),
        )
    )


def _difference(of: Paired | None, digits: int) -> str:
    if of is None:
        return ""
    mean, low, high = (f"{x:+.{digits}f}" for x in (of.mean, *of.interval))
    return f"{mean} [{low}, {high}]"


def _sampling(summary: Summary) -> str:
    header = ["method", "setting", "parses (%)", "distinct-1", "-2", "-3", "self-BLEU", "log-likelihood"]
    header += [f"{name}, prose" for name in ("distinct-1", "-2", "-3", "self-BLEU", "log-likelihood")]
    rows = []
    for record in summary.records:
        row = [record["method"], named(record["options"]), cell(record["parses"])]
        for kind in ("code", "prose"):
            row += [f"{record[f'distinct_{n}_{kind}']:.2f}" for n in (1, 2, 3)]
            row += [f"{record[f'self_bleu_{kind}']:.0f}", f"{record[f'likelihood_{kind}'][0]:.2f}"]
        rows.append(row)
    return f"{markdown(header, rows, words=2)}\n\n{_at_equal_diversity(summary)}"


def _at_equal_diversity(summary: Summary) -> str:
    metrics = {"parses": 1, "likelihood_code": 2, "likelihood_prose": 2}
    header = ["minus constants of equal distinct-2"]
    for name in ("parses (points)", "log-likelihood, code", "log-likelihood, prose"):
        header += [name, "p"]
    families = {metric: summary.family("constant", metric) for metric in metrics}
    rows = []
    for method in dict.fromkeys(m for m in summary.methods if m != "constant"):
        row = [method]
        for metric, digits in metrics.items():
            found = families[metric].get(method)
            row += [_difference(found, digits), "" if found is None else f"{found.p:.1g}"]
        rows.append(row)
    return markdown(header, rows)


def _borders(summary: Summary) -> str:
    header = [
        "tokens after the border",
        "number",
        "NLL, TempNet",
        "constant of this kind",
        "constant of the first kind",
    ]
    header += ["moved to the second kind's mean"]
    rows = []
    for record in summary.records:
        numbers = (f"{record[name]:.3f}" for name in ("nll", "nll_constant", "nll_constant_of_first"))
        rows.append([record["method"], f"{record['tokens']:,}", *numbers, f"{record['moved']:.2f}"])
    return markdown(header, rows)
