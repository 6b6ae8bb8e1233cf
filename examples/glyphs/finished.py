"""Load a finished run for analysis."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Checkpoints
from .config import Config
from .data import load
from .training import Run


def finished(folder: Path, seed: int) -> tuple[Run, Run]:
    """TempNet's run before training, with a random readout, and after training.

    Raises:
        ValueError: there is no such run, it is unfinished, or another version of this library made it.
    """
    path, command = folder / "checkpoints" / f"tempnet-seed{seed}.pt", "python examples/clip_glyphs.py"
    first = f"Run: {command} --methods tempnet --seeds {seed} --out {folder} first."
    if not path.exists():
        raise ValueError(f"expected a finished run in {path}, received no such file. {first}")
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["result"] is None:
        raise ValueError(
            f"expected a finished run in {path}, received one that was stopped in epoch {state['epoch'] + 1}. "
            f"Run: {command} --resume, with the options that it was started with, first."
        )
    known = {field.name for field in fields(Config)}
    config = Config(**{name: value for name, value in state["run"].items() if name in known})
    data = load(config)
    began, ended = (Run("tempnet", seed, config, data) for _ in range(2))
    try:
        Checkpoints(path.parent, resume=True).restore(ended)
    except RuntimeError as error:
        raise ValueError(
            f"expected a run of this version in {path}, received one with other parameters. {first}"
        ) from error
    _read_out_at_random(began, seed)
    return began, ended


def _read_out_at_random(run: Run, seed: int) -> None:
    """Initialise the readout at random: a control needs temperatures that differ, and the network starts with one."""
    generator = torch.Generator().manual_seed(seed)
    for predictor in run.objective.predictors.values():
        torch.nn.init.normal_(predictor.readout.last.weight, generator=generator)
