"""Training runs: every method is tuned alike, then trained with every seed; each result is stored as it arrives."""

import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Trials run with this seed, tests with others.
TUNING_SEED = 100

Options: TypeAlias = dict[str, float]


def grid(fixed: Mapping[str, float] | None = None, **values: Sequence[float]) -> list[Options]:
    """Options of each trial: all combinations of the values, beside those that are fixed."""
    return [
        {**(fixed or {}), **dict(zip(values, chosen, strict=True))}
        for chosen in itertools.product(*values.values())
    ]


@dataclass(frozen=True)
class Job:
    """One run, `run(method, seed, options, tuning=..., **extra)`, and the file that stores its result.

    Args:
        method: what is trained.
        seed: of the data split, the model and the batches.
        options: of the trial.
        folder: of the stored results.
        run: trains and evaluates; returns a dictionary for JSON whose "chosen_by" is lower for a better trial.
        label: name in tables, where it is not the method's.
        extra: what else `run` takes.
    """

    method: str
    seed: int
    options: Options
    folder: Path
    run: Callable[..., dict[str, Any]]
    label: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """Its name says which run it stores."""
        options = (f"{key}={value:g}" for key, value in sorted(self.options.items()))
        return self.folder / f"{'-'.join([self.label or self.method, str(self.seed), *options])}.json"

    def done(self) -> dict[str, Any]:
        """Train and evaluate, or read the stored result."""
        torch.set_num_threads(1)
        tuning = self.seed == TUNING_SEED
        result = stored(
            self.file, lambda: self.run(self.method, self.seed, self.options, tuning=tuning, **self.extra)
        )
        return {"method": self.label or self.method, "seed": self.seed, "options": self.options, **result}


def stored(file: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The stored result of a run, or that of running it now; an interruption leaves no partial file."""
    if not file.exists():
        result = run()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        partial.write_text(json.dumps(result, indent=1))
        os.replace(partial, file)
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def all_done(jobs: Sequence[Job], workers: int, what: str) -> list[dict[str, Any]]:
    """Results of all jobs, in their order; several workers are processes of one thread each. Shows a progress bar."""
    console = Console()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=len(jobs))
        results = []
        for job, result in zip(jobs, _results(jobs, workers), strict=True):
            results.append(result)
            bar.advance(task)
            console.print(f"{job.file.stem}: {result['chosen_by']:.3f} on validation", highlight=False)
    return results


def _results(jobs: Sequence[Job], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from map(Job.done, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(Job.done, jobs, chunksize=1)


def tuned_and_tested(
    job_of: Callable[[str, int, Options], Job],
    trials: Mapping[str, Sequence[Options]],
    seeds: Sequence[int],
    workers: int,
    known: Mapping[str, Options] | None = None,
) -> list[dict[str, Any]]:
    """Results of each method's best trial with every seed.

    Args:
        job_of: the run of a method with a seed and a trial's options.
        trials: options of each method's trials, which run with `TUNING_SEED`.
        seeds: of the test runs.
        workers: processes of one thread each.
        known: options chosen in an earlier study; these methods are not tuned again.
    """
    best = dict(known or {})
    jobs = [
        job_of(method, TUNING_SEED, options)
        for method, each in trials.items()
        if method not in best
        for options in each
    ]
    best |= chosen(all_done(jobs, workers, "tuning"))
    # Seed by seed, so that an interrupted study has compared all methods on its first seeds.
    jobs = [job_of(method, seed, best[method]) for seed in seeds for method in trials]
    return all_done(jobs, workers, "testing")


def chosen(tuned: Iterable[dict[str, Any]]) -> dict[str, Options]:
    """Options of each method's best trial on validation."""
    best: dict[str, dict[str, Any]] = {}
    for result in tuned:
        if result["method"] not in best or result["chosen_by"] < best[result["method"]]["chosen_by"]:
            best[result["method"]] = result
    return {method: result["options"] for method, result in best.items()}
