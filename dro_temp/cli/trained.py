"""The folder of a run of the training loop: its model, predictors, the objective's memory, temperatures by epoch."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dro_temp._files import whole_file
from dro_temp.cli.messages import say
from dro_temp.cli.run import Run
from dro_temp.cli.training import Training
from dro_temp.objective import Objective
from dro_temp.predictors import TempNet

_PARTS, _HISTORY, _HOST = "objective.pt", "history.pt", "host."
#: Temperatures by view, after each epoch.
History = list[tuple[int, dict[str, Tensor]]]


def save_parts(training: Training, folder: Path) -> dict[str, Any]:
    """Write all of an objective but its host, and temperatures over the epochs; return what is to be written down.

    A TempNet is written as `TempNet.from_pretrained` reads it as well.
    """
    objective, progress = training.objective, training.progress
    state = {name: x for name, x in objective.state_dict().items() if not name.startswith(_HOST)}
    with whole_file(folder / _PARTS) as file:
        torch.save(state, file)
    for view, predictor in objective.predictors.items():
        if isinstance(predictor, TempNet):
            predictor.save_pretrained(folder / "tempnet" / view)
    epochs = [int(found["epoch"]) for found in progress.epochs]
    with whole_file(folder / _HISTORY) as file:
        torch.save(list(zip(epochs, progress.tau, strict=True)), file)
    sizes = {"num_samples": training.data.numbers, "steps_per_epoch": training.data.steps}
    return {"best_epoch": progress.best_epoch, "sizes": sizes, "validations": progress.epochs}


def load_parts(objective: Objective, folder: Path) -> None:
    """Read them."""
    path = folder / _PARTS
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        kept = {name: x for name, x in objective.state_dict().items() if name.startswith(_HOST)}
        objective.load_state_dict(kept | state)
    except Exception as error:  # no file, a damaged one, or one of another scheme
        raise ValueError(
            f"expected the predictors of a run in {str(path)!r}, received a file that does not hold them "
            f"({type(error).__name__}). Copy the run again, or remove finished.json and type fit again."
        ) from error


def load_history(folder: Path) -> History:
    """Temperatures over the epochs; none where nothing was held out."""
    path = folder / _HISTORY
    if not path.is_file():
        return []
    history: Any = torch.load(path, weights_only=True)
    return [(epoch, {view: x.float() for view, x in tau.items()}) for epoch, tau in history]


class Saved(Protocol):
    """A model in the format of its own library."""

    def save(self, folder: Path) -> None:
        """Write it."""


class ModelRun(Run):
    """A run whose result is a model with its temperatures."""

    what, unit = "model", "epochs"
    free = ("output", "epochs", "save_every", "log", "workers")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = folder / "model"

    @property
    def result(self) -> Path:
        """The folder of the model."""
        return self.model

    def finish(self, model: Saved, training: Training) -> None:
        """Write what was trained; the run counts as finished once all of it is written."""
        self.unfinished()
        model.save(self.model)
        self.finished(training.settings.epochs, **save_parts(training, self.folder))
        say(f"wrote {self.model}; next: {self.typed('eval')}")
