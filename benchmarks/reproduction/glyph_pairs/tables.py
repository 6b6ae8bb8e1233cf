"""What the runs found, as Markdown."""

import statistics
from typing import Any

from harness.study import cell

from reproduction.paired import against

COLUMNS = {
    "seen i→n": "test_seen/i2t_r1",
    "seen n→i": "test_seen/t2i_r1",
    "unseen i→n": "test_unseen/i2t_r1",
    "unseen n→i": "test_unseen/t2i_r1",
    "mean R@1": "mean_r1",
    "zero-shot": "zero_shot",
}


def table(best: dict[str, dict[str, float]], tests: list[dict[str, Any]], ours: str) -> str:
    """One row for each arm, and our arm against each of the others."""
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for test in sorted(tests, key=lambda t: t["seed"]):
        by_arm.setdefault(test["arm"], []).append(test)
    means = {arm: [run["metrics"]["mean_r1"] for run in runs] for arm, runs in by_arm.items()}
    others = {arm: values for arm, values in means.items() if arm != ours and len(values) > 1}
    compared = against(means[ours], others) if others and len(means[ours]) > 1 else {}
    lines = [
        f"| arm | chosen | {' | '.join(COLUMNS)} | recovered (%): images, names | τ: last mean | {ours} minus it |",
        "|---|---|" + "---:|" * len(COLUMNS) + "---:|---:|---|",
    ]
    for arm, runs in by_arm.items():
        cells = [cell([run["metrics"][key] for run in runs]) for key in COLUMNS.values()]
        options = ", ".join(f"{k} {v:g}" for k, v in runs[0]["options"].items())
        tau = statistics.mean(run["taus"][-1] for run in runs)
        lines.append(
            f"| {arm} | {options} | {' | '.join(cells)} | {_recovered(runs)} | {tau:.3f} | {compared.get(arm, '')} |"
        )
    return "\n".join(lines)


def _recovered(runs: list[dict[str, Any]]) -> str:
    if not runs[0].get("gap"):
        return ""
    return ", ".join(
        cell([100 * run["gap"][view]["recovered"] for run in runs], digits=0) for view in runs[0]["gap"]
    )
