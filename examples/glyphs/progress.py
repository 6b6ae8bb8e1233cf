"""Progress of a run: a bar on a terminal, one line per epoch elsewhere."""

from types import TracebackType

from rich import progress as bars
from rich.console import Console

from .training import Run


class Progress:
    """Shows the progress of a run.

    Args:
        run: the run, which may be partly or completely done.
        console: output; a bar is drawn only on a terminal.
    """

    def __init__(self, run: Run, console: Console) -> None:
        self.run, self.console = run, console
        self.name = f"{run.method} seed {run.seed}"
        self.bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("epoch {task.fields[epoch]}  loss {task.fields[loss]}  τ {task.fields[tau]}"),
            bars.TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Progress":
        """Start the bar."""
        config = self.run.config
        total = config.epochs * config.steps_per_epoch
        self.task = self.bar.add_task(
            self.name, total=total, completed=self._done(), epoch=self.run.epoch + 1, loss="-", tau="-"
        )
        self.bar.start()
        if self.run.result is not None:
            self.console.print(f"{self.name}: already finished", highlight=False)
        elif self._done():
            self.console.print(f"{self.name}: resumed after step {self._done()} of {total}", highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bar."""
        self.bar.stop()

    def _done(self) -> int:
        return self.run.epoch * self.run.config.steps_per_epoch + self.run.step

    def step(self, seen: dict[str, float]) -> None:
        """Called after each step."""
        self.bar.update(
            self.task,
            completed=self._done(),
            epoch=self.run.epoch + 1,
            loss=f"{seen['loss']:.3f}",
            tau=f"{(seen['tau_image'] + seen['tau_text']) / 2:.4f}",
        )

    def epoch(self) -> None:
        """Called after each epoch and its validation."""
        last = {name: values[-1] for name, values in self.run.history.items()}
        self.console.print(
            f"{self.name}: epoch {self.run.epoch}/{self.run.config.epochs}  loss {last['loss']:.3f}  "
            f"τ images {last['tau_image']:.4f} names {last['tau_text']:.4f}  "
            f"validation R@1 {last['val_r1']:.1f} %",
            highlight=False,
            soft_wrap=True,
        )
