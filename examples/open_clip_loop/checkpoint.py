"""One checkpoint file, replaced atomically."""

import os
from typing import Any

import torch

from dro_temp import distributed

from .config import Options


class Checkpoint:
    """State of the model, the loss and the optimizer.

    Args:
        options: options of the run.
        **parts: objects with a state_dict.
    """

    def __init__(self, options: Options, **parts: Any) -> None:
        self.options, self.parts, self.file = options, parts, options.out / "latest.pt"

    def save(self, epoch: int, results: dict[str, Any]) -> None:
        """Save on the first process; all have the same state."""
        if distributed.rank() > 0:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        states = {name: part.state_dict() for name, part in self.parts.items()}
        about = {"epoch": epoch, "results": results, "options": self.options.of_a_run()}
        unfinished = self.file.with_suffix(".partial")
        torch.save(states | about, unfinished)
        os.replace(unfinished, self.file)

    def restore(self) -> tuple[int, dict[str, Any]]:
        """Restore; return the finished epochs and the metrics so far.

        Raises:
            ValueError: the checkpoint was made with other options.
        """
        if not self.file.exists():
            return 0, {}
        saved = torch.load(self.file, weights_only=True)
        was, now = saved["options"], self.options.of_a_run()
        other = [f"{name}={was.get(name)}" for name in now if was.get(name) != now[name]]
        if other:
            raise ValueError(
                f"expected the options that {self.file} was made with, {' '.join(other)}, received others. Type them, "
                "or --out with another folder."
            )
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        return saved["epoch"], saved["results"]
