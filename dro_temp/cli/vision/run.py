"""The folder of a run over images with classes: the model in timm's format, and its temperatures."""

from dataclasses import dataclass
from typing import Any

from dro_temp.cli.trained import ModelRun, load_parts
from dro_temp.cli.vision.models import Classifier, load
from dro_temp.cli.vision.schemes import build
from dro_temp.hosts import Timm
from dro_temp.objective import Objective


@dataclass(frozen=True)
class Trained:
    """What a finished run holds: the model, the objective with its predictor, and the options."""

    classifier: Classifier
    objective: Objective
    options: dict[str, Any]


class VisionRun(ModelRun):
    """A run of `dro-temp vision fit`."""

    command = "vision"
    reads = ("model", "data", "val", "scheme", "risk", "epochs", "batch", "seed")

    def load(self, names: tuple[str, ...]) -> Trained:
        """Model, predictor and options of a finished run over these classes."""
        options = self.finished_options()
        classifier = load(f"local-dir:{self.model}", names, side=options["image_size"])
        sizes = self.written()["sizes"]
        objective = build(Timm(classifier.model), options, options["epochs"] * sizes["steps_per_epoch"])
        load_parts(objective, self.folder)
        return Trained(classifier, objective.eval(), options)
