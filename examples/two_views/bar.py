"""Progress of a run: a bar on a terminal, one line at the end elsewhere."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .training import Run


def train(run: Run, console: Console, should_stop: Callable[[], bool]) -> None:
    """Train with a progress bar; save the run, also when `should_stop` ends it.

    Raises:
        KeyboardInterrupt: training was stopped after the current step.
    """
    numbers = TextColumn("loss {task.fields[loss]:.3f}  τ {task.fields[tau]:.3f}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        numbers,
        TimeRemainingColumn(),
    )
    name = f"{run.options.scheme} seed {run.seed}"
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=run.steps, completed=run.step, loss=0.0, tau=run.options.tau)

        def watch(seen: dict[str, float]) -> None:
            bar.update(task, advance=1, loss=seen["loss"], tau=seen["first/tau_mean"])

        done = run.fit(watch, should_stop)
    run.save(run.options.out / "checkpoints")
    console.print(f"{name}: step {run.step} of {run.steps}", highlight=False)
    if not done:
        raise KeyboardInterrupt
