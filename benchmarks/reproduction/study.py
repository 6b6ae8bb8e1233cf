"""Tune every arm alike, then train the chosen trial with every seed; each run is kept, and shown as it ends."""

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness.study import kept, name_of
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

TUNING_SEED = 100


@dataclass(frozen=True)
class Job:
    """One run, and where it is kept."""

    arm: str
    seed: int
    options: dict[str, float]
    file: Path
    run: Callable[..., dict[str, Any]]
    extra: dict[str, Any] = field(default_factory=dict)


def job(
    run: Callable[..., dict[str, Any]],
    folder: Path,
    arm: str,
    seed: int,
    options: dict[str, float],
    *,
    label: str | None = None,
    **extra: Any,
) -> Job:
    """A run of `run(arm, seed, options, tuning=..., **extra)`; `label` tells it apart from others of the arm."""
    file = folder / f"{name_of(label or arm, str(seed), **options)}.json"
    return Job(label or arm, seed, options, file, run, {"arm": arm, **extra})


def done(job: Job) -> dict[str, Any]:
    """Train and evaluate, or read what was stored."""
    torch.set_num_threads(1)
    extra = dict(job.extra)
    arm, tuning = extra.pop("arm"), job.seed == TUNING_SEED
    result = kept(job.file, lambda: job.run(arm, job.seed, job.options, tuning=tuning, **extra))
    return {"arm": job.arm, "seed": job.seed, "options": job.options, **result}


def all_done(jobs: Sequence[Job], workers: int, what: str) -> list[dict[str, Any]]:
    """Run what is not stored, on so many processes of one thread, under a bar; in the order of the jobs."""
    console = Console()
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        multiprocessing.get_context("spawn").Pool(workers) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task(what, total=len(jobs))
        results = []
        for one, result in zip(jobs, pool.imap(done, jobs, chunksize=1), strict=True):
            results.append(result)
            bar.advance(task)
            console.print(f"{one.file.stem}: {result['chosen_by']:.3f} on validation", highlight=False)
    return results


def tuned_and_tested(
    job_of: Callable[[str, int, dict[str, float]], Job],
    trials: Mapping[str, Sequence[dict[str, float]]],
    seeds: Sequence[int],
    workers: int,
    known: Mapping[str, dict[str, float]] | None = None,
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Every arm's best trial, and the runs of it with every seed.

    Args:
        job_of: a run of an arm with a seed and a trial's options; it is a trial where the seed is `TUNING_SEED`.
        trials: options of each arm's trials.
        seeds: of the test runs.
        workers: processes of one thread each.
        known: options chosen in an earlier study, of arms that need no trials here.
    """
    best = dict(known or {})
    trials = {arm: () if arm in best else each for arm, each in trials.items()}
    jobs = [job_of(arm, TUNING_SEED, options) for arm, each in trials.items() for options in each]
    best |= chosen(all_done(jobs, workers, "tuning"))
    # Seed by seed, so that an early stop leaves whole comparisons.
    jobs = [job_of(arm, seed, best[arm]) for seed in seeds for arm in trials]
    return best, all_done(jobs, workers, "testing")


def chosen(tuned: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Options of the trial that is best on validation, for each arm."""
    best: dict[str, dict[str, Any]] = {}
    for result in tuned:
        if result["arm"] not in best or result["chosen_by"] < best[result["arm"]]["chosen_by"]:
            best[result["arm"]] = result
    return {arm: result["options"] for arm, result in best.items()}
