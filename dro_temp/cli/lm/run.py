"""The folder of a run over a language model: its TempNet, and the model if that was trained as well."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dro_temp.cli.lm.models import load_model
from dro_temp.cli.run import Run
from dro_temp.predictors import TempNet


class LmRun(Run):
    """A run of `dro-temp lm fit`."""

    command, what, unit = "lm", "TempNet", "steps"
    reads = ("model", "tokenizer", "data", "block", "steps")
    free = ("output", "steps", "save_every")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tempnet = folder / "tempnet"
        self._model = folder / "model"  # if it was trained

    @property
    def result(self) -> Path:
        """The folder of the TempNet."""
        return self.tempnet

    def finish(self, steps: int, tempnet: TempNet, model: Sequence[Any]) -> None:
        """Write what was trained in so many steps; the run counts as finished once all of it is written.

        A model that was trained as well is given as the parts that have a `save_pretrained`.
        """
        self.unfinished()
        if model:
            fresh = self.folder / "model.partial"
            shutil.rmtree(fresh, ignore_errors=True)
            for part in model:
                part.save_pretrained(fresh)
            shutil.rmtree(self._model, ignore_errors=True)
            fresh.replace(self._model)
        tempnet.save_pretrained(self.tempnet)
        self.finished(steps)

    def load(self) -> tuple[Any, Any, TempNet, dict[str, Any]]:
        """Model, tokenizer, TempNet and options of a finished run."""
        options = self.finished_options()
        source = str(self._model) if self._model.exists() else options["model"]
        model, tokenizer = load_model(source, options["tokenizer"])
        tempnet = TempNet.from_pretrained(self.tempnet).eval()
        tempnet.check_fits(model)
        return model, tokenizer, tempnet, options
