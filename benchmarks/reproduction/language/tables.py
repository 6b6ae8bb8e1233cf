"""What the runs found, as Markdown."""

from typing import Any

from harness.study import cell

ONE, LIKELIHOOD, ROBUST, OPTIMUM = (
    "tau = 1",
    "best constant (likelihood)",
    "best constant (robust)",
    "optimum",
)


def table(study: str, found: dict[str, Any]) -> str:
    """Rows of one study."""
    runs: dict[str, list[dict[str, dict[str, Any]]]] = {}
    for test in sorted(found["tests"], key=lambda t: t["seed"]):
        schemes = {scheme["name"]: scheme for scheme in test["schemes"]["test"]}
        runs.setdefault(test["arm"], []).append(schemes)
    return (_frozen if study == "frozen" else _joint)(runs, found["chosen"])


def _frozen(runs: dict[str, list[dict[str, dict[str, Any]]]], chosen: dict[str, dict[str, float]]) -> str:
    lines = [
        "| temperature | chosen on validation | perplexity | ECE (%) | recovered (%) | mean τ |",
        "|---|---|---:|---:|---:|---:|",
    ]
    same = next(iter(runs.values()))  # whatever the method, these are the hosts' own
    for name in (ONE, LIKELIHOOD, ROBUST, OPTIMUM):
        lines.append(f"| {name} | | {_cells([run[name] for run in same])} |")
    for method, of_seeds in runs.items():
        lines.append(
            f"| {method} | {_options(chosen[method])} | {_cells([run['own'] for run in of_seeds])} |"
        )
    return "\n".join(lines)


def _cells(schemes: list[dict[str, Any]]) -> str:
    return " | ".join(
        (
            cell([s["perplexity"] for s in schemes]),
            cell([100 * s["ece"] for s in schemes]),
            cell([100 * s["recovered"] for s in schemes]),
            cell([s["tau_mean"] for s in schemes], digits=3),
        )
    )


def _joint(runs: dict[str, list[dict[str, dict[str, Any]]]], chosen: dict[str, dict[str, float]]) -> str:
    lines = [
        "| trained with | chosen on validation | perplexity, own τ | minus cross-entropy's, paired | at τ = 1 "
        "| best constant | ECE, own τ (%) | mean τ | τ, 5 to 95 % of tokens |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    first = next(iter(runs))  # cross-entropy
    baseline = [run["own"]["perplexity"] for run in runs[first]]
    for method, of_seeds in runs.items():
        own = [run["own"] for run in of_seeds]
        gain = [s["perplexity"] - base for s, base in zip(own, baseline, strict=True)]
        middle = [list(s["tau_quantiles"].values()) for s in own]
        cells = (
            method,
            _options(chosen[method]),
            cell([s["perplexity"] for s in own]),
            "" if method == first else cell(gain, sign="+", digits=2),
            cell([run[ONE]["perplexity"] for run in of_seeds]),
            cell([run[LIKELIHOOD]["perplexity"] for run in of_seeds]),
            cell([100 * s["ece"] for s in own]),
            cell([s["tau_mean"] for s in own], digits=3),
            f"{_mean(q[1] for q in middle):.3f} to {_mean(q[-2] for q in middle):.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def _options(options: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:g}" for k, v in options.items())
