"""One checkpoint file per run, replaced atomically."""

import os
from pathlib import Path
from typing import Any

import torch

from .training import Run


class Checkpoints:
    """The checkpoints of one experiment in one folder.

    Args:
        folder: made when something is saved.
        resume: True to continue from the existing checkpoints. Otherwise they belong to an earlier experiment and are
            deleted with the first checkpoint of this one: not before, so that an accidental start loses nothing, and
            not later, so that --resume never mixes the two.
    """

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder, self.ours = folder, resume

    def path(self, run: Run) -> Path:
        """Path of a run's checkpoint."""
        return self.folder / f"{run.method}-seed{run.seed}.pt"

    def save(self, run: Run) -> None:
        """Write a temporary file, then rename it, so that the checkpoint is always complete."""
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
        """Restore a run from its checkpoint; return False if there is none.

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
