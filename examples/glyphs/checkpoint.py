"""One file per run, replaced whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch

from .training import Run


class Checkpoints:
    """The checkpoints of one experiment in one folder.

    Args:
        folder: made when something is saved.
        resume: True to go on with what is there. Otherwise it belongs to an earlier experiment, and goes when the
            first checkpoint of this one is written: not before, for an accidental start should cost nothing, and
            not later, for --resume must not mix the two.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder, self.ours = folder, resume

    def path(self, run: Run) -> Path:
        """Where that run's checkpoint is."""
        return self.folder / f"{run.method}-seed{run.seed}.pt"

    def save(self, run: Run) -> None:
        """Write beside the old checkpoint, then put it in its place: there is always a whole one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(run)
        unfinished = path.with_suffix(".partial")
        torch.save(run.state_dict(), unfinished)
        if not self.ours:
            for old in self.folder.glob("*.pt"):
                old.unlink()
            self.ours = True
        os.replace(unfinished, path)

    def restore(self, run: Run) -> bool:
        """Put a run where its checkpoint left it; False if there is none.

        Raises:
            ValueError: the checkpoint was made with other options.
        """
        path = self.path(run)
        if not (self.ours and path.exists()):
            return False
        state: dict[str, Any] = torch.load(path, weights_only=True)
        was, now = state["run"], run.options
        other = [name for name in was | now if was.get(name) != now.get(name)]
        if other:
            raise ValueError(
                f"expected the options that {path} was made with, {_typed(was, other)}, received "
                f"{_typed(now, other)}. To continue, type {_typed(was, other)} --resume; to start over, leave out "
                "--resume."
            )
        run.load_state_dict(state)
        return True


def _typed(options: dict[str, Any], names: list[str]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {options.get(name)}" for name in names)
