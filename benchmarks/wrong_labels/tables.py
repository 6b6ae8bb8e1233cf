"""The numbers of a study of wrong labels as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.study import cell
from reproduction.paired import Paired, against

from wrong_labels.arms import BASELINE

#: What follows the accuracies: title, metric, decimals.
COLUMNS = (
    ("NLL: τ = 1", "nll_one", 2),
    ("best constant", "nll_constant", 2),
    ("own τ", "nll_own", 2),
    ("ECE (%): τ = 1", "ece_one", 0),
    ("best constant", "ece_constant", 0),
    ("own τ", "ece_own", 0),
    ("AUROC: τ", "auroc_tau", 2),
    ("weight", "auroc_weight", 2),
    ("loss", "auroc_loss", 2),
    ("mean τ: wrong", "tau_wrong", 2),
    ("right", "tau_right", 2),
    ("weight of the wrong (%)", "weight_of_wrong", 1),
)
Tests = Sequence[Mapping[str, Any]]


def by_arm(tests: Tests) -> dict[str, list[dict[str, float]]]:
    """Metrics of each arm's runs, by seed."""
    found: dict[str, list[dict[str, float]]] = {}
    for test in sorted(tests, key=lambda test: test["seed"]):
        found.setdefault(test["arm"], []).append(test["metrics"])
    return found


def gains(runs: Mapping[str, Sequence[Mapping[str, float]]], metric: str = "accuracy") -> dict[str, Paired]:
    """Every arm minus label smoothing."""
    if len(runs.get(BASELINE, ())) < 2:
        return {}
    values = {arm: [m[metric] for m in each] for arm, each in runs.items()}
    # `against` gives ours minus each of the others: signs turned, it is each of the others minus ours.
    others = {arm: [-x for x in each] for arm, each in values.items() if arm != BASELINE}
    return against([-x for x in values[BASELINE]], others)


def table(tests: Tests, chosen: Mapping[str, Mapping[str, float]]) -> str:
    """One row for each arm; columns that nobody has are left out."""
    runs = by_arm(tests)
    columns = [column for column in COLUMNS if any(column[1] in each[0] for each in runs.values())]
    header = ["arm", "chosen", "accuracy (%)", "balanced", f"minus {BASELINE}", *(c[0] for c in columns)]
    lines = [f"| {' | '.join(header)} |", "|---|---|" + "---:|" * (len(header) - 2)]
    more = gains(runs)
    for arm, each in runs.items():
        options = ", ".join(f"{key} {value:g}" for key, value in chosen[arm].items())
        cells = [cell([m[name] for m in each]) for name in ("accuracy", "balanced")]
        cells.append(_paired(more[arm]) if arm in more else "")
        for _, name, digits in columns:
            cells.append(cell([m[name] for m in each], digits=digits) if name in each[0] else "")
        lines.append(f"| {arm} | {options} | {' | '.join(cells)} |")
    return "\n".join(lines)


def overview(levels: Mapping[float, Tests]) -> str:
    """Accuracy of each arm at each share of wrong labels; bold where it is above label smoothing, p < 0.05."""
    runs = {noise: by_arm(tests) for noise, tests in sorted(levels.items())}
    compared = {noise: gains(of) for noise, of in runs.items()}
    header = ["accuracy (%)", *(f"{100 * noise:g} % redrawn" for noise in runs)]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * len(runs)]
    for arm in dict.fromkeys(arm for of in runs.values() for arm in of):
        cells = []
        for noise, of in runs.items():
            text = cell([m["accuracy"] for m in of[arm]]) if arm in of else ""
            gain = compared[noise].get(arm)
            cells.append(f"**{text}**" if gain and gain.mean > 0 and gain.p < 0.05 else text)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _paired(gain: Paired) -> str:
    low, high = gain.interval
    return f"{gain.mean:+.1f} [{low:+.1f}, {high:+.1f}], p {gain.p:.2g}"
