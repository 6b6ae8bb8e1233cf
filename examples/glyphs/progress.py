"""What one sees while a run trains: a bar on a terminal, a line per epoch elsewhere."""

from types import TracebackType

from rich import progress as bars
from rich.console import Console

from .training import Run


class Progress:
    """Shows a run's steps.

    Args:
        run: what to show; it may be half done or finished already.
        console: where; a bar is drawn only if that is a terminal.
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
            self.console.print(f"{self.name}: finished before", highlight=False)
        elif self._done():
            self.console.print(f"{self.name}: resumed after step {self._done()} of {total}", highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self.bar.stop()

    def _done(self) -> int:
        return self.run.epoch * self.run.config.steps_per_epoch + self.run.step

    def step(self, seen: dict[str, float]) -> None:
        """A step was taken."""
        self.bar.update(
            self.task,
            completed=self._done(),
            epoch=self.run.epoch + 1,
            loss=f"{seen['loss']:.3f}",
            tau=f"{(seen['tau_image'] + seen['tau_text']) / 2:.4f}",
        )

    def epoch(self) -> None:
        """An epoch was finished and validated."""
        last = {name: values[-1] for name, values in self.run.history.items()}
        self.console.print(
            f"{self.name}: epoch {self.run.epoch}/{self.run.config.epochs}  loss {last['loss']:.3f}  "
            f"τ images {last['tau_image']:.4f} names {last['tau_text']:.4f}  "
            f"validation R@1 {last['val_r1']:.1f} %",
            highlight=False,
            soft_wrap=True,
        )
