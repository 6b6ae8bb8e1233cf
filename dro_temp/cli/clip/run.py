"""The folder of a run over images and texts: the model in open_clip's format, and its temperatures."""

import copy
from dataclasses import dataclass
from typing import Any

from dro_temp.cli.clip.models import Clip, load
from dro_temp.cli.clip.schemes import build, needs_reference
from dro_temp.cli.trained import ModelRun, load_parts
from dro_temp.hosts import OpenCLIP
from dro_temp.objective import Objective


@dataclass(frozen=True)
class Trained:
    """What a finished run holds.

    Args:
        clip: the model.
        host: around it.
        objective: with the predictors as they were trained.
        options: of the run.
    """

    clip: Clip
    host: OpenCLIP
    objective: Objective
    options: dict[str, Any]


class ClipRun(ModelRun):
    """A run of `dro-temp clip fit`."""

    command = "clip"
    reads = ("model", "data", "val", "scheme", "epochs", "batch", "seed")

    def load(self) -> Trained:
        """Model, predictors and options of a finished run."""
        options = self.finished_options()
        clip = load(str(self.model))
        host = OpenCLIP(clip.model)
        sizes = self.written()["sizes"] | {"epochs": options["epochs"]}
        reference = (
            OpenCLIP(copy.deepcopy(clip.model), frozen=True) if needs_reference(options["scheme"]) else None
        )
        objective = build(
            options,
            host,
            reference=reference,
            chunk=None,
            width=host.width,
            **sizes,
        )
        load_parts(objective, self.folder)
        return Trained(clip, host, objective.eval(), options)
