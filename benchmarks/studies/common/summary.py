"""A study's summary: mean and standard deviation over seeds for each method, and paired differences between methods.

Tables and plots are made from summaries alone; the runs behind them stay under `runs/`, outside of version control.
"""

import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.harness import results
from benchmarks.harness.timing import machine
from benchmarks.studies.common.paired import Paired, corrected, paired

#: Numbers of a run's result that enter the summary.
Metrics = Callable[[Mapping[str, Any]], Mapping[str, float]]


@dataclass(frozen=True)
class Summary:
    """What tables, plots and `benchmarks/results/` have of a study.

    Args:
        about: date, machine, seeds and settings.
        records: for each method its name, its options, the number of seeds, and [mean, standard deviation] of
            every metric; [None, None] where a metric is undefined in some run.
        differences: one method minus another, paired by seed, with the t-test's p-value before any correction.
    """

    about: dict[str, Any]
    records: list[dict[str, Any]]
    differences: list[dict[str, Any]] = field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        """Names, in the order of the table."""
        return [record["method"] for record in self.records]

    def __getitem__(self, method: str) -> dict[str, Any]:
        """The record of a method."""
        return next(record for record in self.records if record["method"] == method)

    def minus(self, method: str, other: str, metric: str) -> Paired | None:
        """One method minus another, if the summary compares them."""
        for row in self.differences:
            if row["metric"] == metric and {row["method"], row["minus"]} == {method, other}:
                values = {key: row[key] for key in ("mean", "std", "p", "seeds", "higher", "lower")}
                result = Paired(interval=(row["low"], row["high"]), **values)
                return result if row["method"] == method else -result
        return None

    def family(self, reference: str, metric: str, methods: Iterable[str] | None = None) -> dict[str, Paired]:
        """Each of the methods (all others, if None) minus the reference, after Holm's correction over them."""
        wanted = self.methods if methods is None else methods
        compared = {m: self.minus(m, reference, metric) for m in wanted if m != reference}
        return corrected({method: each for method, each in compared.items() if each is not None})


def summarise(
    runs: Iterable[Mapping[str, Any]],
    metrics: Metrics,
    *,
    compared: Sequence[str] = (),
    references: Sequence[str] | None = None,
    lowest: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
) -> Summary:
    """Summary of runs, each with "method", "seed" and "options".

    Args:
        runs: results of all methods and seeds.
        metrics: from a run to its numbers; one that some run of a method lacks is left out.
        compared: metrics of which paired differences are wanted.
        references: methods that others are compared with; None for all pairs.
        lowest: metrics of which the lowest over the seeds is recorded as well, as "<metric>_min".
        about: date, machine and seeds by default; entries given here are added.
    """
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        by_method.setdefault(run["method"], []).append(run)
    values = {method: _columns(map(metrics, each)) for method, each in by_method.items()}
    records = []
    for method, each in by_method.items():
        of = values[method]
        record = {"method": method, "options": each[0]["options"], "seeds": len(each)}
        record |= {name: _mean_and_std(column) for name, column in of.items()}
        records.append(record | {f"{name}_min": _lowest(of[name]) for name in lowest})
    seeds = {method: [run["seed"] for run in each] for method, each in by_method.items()}
    differences = [
        row
        for metric in compared
        for row in _differences(values, seeds, metric, list(values) if references is None else references)
    ]
    every_seed = sorted(set().union(*seeds.values()))
    return Summary({**machine(), "seeds": every_seed, **(about or {})}, records, differences)


def publish(study: str, title: str, section: str, summary: Summary, table: str, options: Namespace) -> None:
    """Print a table; write it to --out, and the summary behind it to --results."""
    results.save((options.results or options.out) / f"{study}.json", title, section, asdict(summary))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{section}.md").write_text(f"{table}\n", encoding="utf-8")
    print(f"{section}\n\n{table}\n", flush=True)


def published(study: str) -> dict[str, Summary]:
    """Summaries of a study in `benchmarks/results/`, by section."""
    sections = results.load(results.RESULTS / f"{study}.json")
    return {name: Summary(**section) for name, section in sections.items()}


def _columns(rows: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Values of the metrics that all rows have."""
    rows = list(rows)
    return {name: [row[name] for row in rows] for name in rows[0] if all(name in row for row in rows)}


def _mean_and_std(values: Sequence[float]) -> list[float | None]:
    if any(map(math.isnan, values)):
        return [None, None]
    return [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0]


def _lowest(values: Sequence[float]) -> float | None:
    return None if any(map(math.isnan, values)) else min(values)


def _differences(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    seeds: Mapping[str, Sequence[int]],
    metric: str,
    references: Sequence[str],
) -> list[dict[str, Any]]:
    """Every method minus every reference with the same seeds, at least two; each pair once."""
    rows: list[dict[str, Any]] = []
    columns = {method: of[metric] for method, of in values.items() if metric in of and len(seeds[method]) > 1}
    done: set[str] = set()
    for reference in (method for method in references if method in columns):
        done.add(reference)
        for method, column in columns.items():
            if method in done or seeds[method] != seeds[reference]:
                continue
            fields = asdict(paired(column, columns[reference]))
            low, high = fields.pop("interval")
            ends = {"mean": fields.pop("mean"), "std": fields.pop("std"), "low": low, "high": high}
            rows.append({"metric": metric, "method": method, "minus": reference, **ends, **fields})
    return rows
