"""The folder of a run: written by `fit`, read by the other commands."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dro_temp._files import check_writable, whole_file
from dro_temp.cli.checkpoints import Checkpoint, newest_complete
from dro_temp.cli.messages import in_one_line, require, say
from dro_temp.cli.models import load_model
from dro_temp.predictors import TempNet

_READ = ("model", "tokenizer", "data", "block", "steps")  # options that other commands read
_FREE = ("output", "steps", "save_every")  # options that may differ: the same run, elsewhere or for longer


class Run:
    """A run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"  # the options, as `--config` takes them
        self.tempnet = folder / "tempnet"
        self.checkpoints = folder / "checkpoints"  # the Trainer's, from which an interrupted run resumes
        self._model = folder / "model"  # if it was trained
        self._finished = folder / "finished.json"  # written at the end

    def steps_done(self) -> int | None:
        """Steps after which the TempNet was written; None before the run is finished."""
        if not (self.tempnet.exists() and self._finished.exists()):
            return None
        try:
            return int(json.loads(self._finished.read_text(encoding="utf-8"))["steps"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"expected the number of steps of a finished run in {str(self._finished)!r}, received a damaged file. "
                f"Remove it and type dro-temp lm fit {self.folder} with the options of {str(self.config)!r}."
            ) from None

    def options(self) -> dict[str, Any]:
        """What the run was started with."""
        if not self.config.exists():
            raise ValueError(
                f"expected the folder of a run in {str(self.folder)!r}, received one without config.yaml. Make one: "
                f"dro-temp lm fit {self.folder}"
            )
        yaml = require("yaml")
        try:
            options = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            received = f"{type(options).__name__} in place of options"
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            options, received = None, f"no YAML ({in_one_line(error)})"
        if isinstance(options, dict):
            lacking = ", ".join(name for name in _READ if name not in options)
            if not lacking:
                return options
            received = f"options without {lacking}"
        raise ValueError(
            f"expected the options of a run in {str(self.config)!r}, received {received}. Mend the file, or fit into "
            "another folder."
        )

    def check_options(self, options: dict[str, Any]) -> None:
        """Raise where these options are not those of the run that is there, or its folder cannot be written to."""
        if self.config.exists():
            known = self.options()
            other = [
                f"{key}={value!r} (was {known[key]!r})"
                for key, value in sorted(options.items())
                if key not in _FREE and known.get(key, value) != value
            ]
            if other:
                raise ValueError(
                    f"expected the options that {str(self.folder)!r} was started with, received other "
                    f"{', '.join(other)}. Pass another folder, or remove this one."
                )
        check_writable(self.folder)

    def start(self, steps: int) -> Checkpoint | None:
        """The checkpoint from which a run to so many steps goes on, which is printed; None if it has made them all."""
        done = self.steps_done()
        if done is not None and done >= steps:
            say(
                f"{self.folder} is finished: {done} steps. Nothing to do; next: dro-temp lm eval {self.folder}. To "
                f"train longer, pass more than --steps {done}."
            )
            return None
        start = newest_complete(self.checkpoints, read=True)
        if done is not None and start.folder is None:
            raise ValueError(
                f"expected a complete checkpoint in {str(self.checkpoints)!r} to resume from after {done} steps, "
                f"received a run that {start}. Fit into another folder, or remove this one to start again."
            )
        if start.folder is not None or start.skipped:
            say(f"{self.folder} {start}")
        return start

    def record(self, options: dict[str, Any]) -> None:
        """Write the options down, all at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self.config) as file:
            file.write(require("yaml").safe_dump(options, sort_keys=False).encode())

    def finish(self, steps: int, tempnet: TempNet, model: Sequence[Any]) -> None:
        """Write what was trained in so many steps; the run counts as finished once all of it is written.

        A model that was trained as well is given as the parts that have a `save_pretrained`.
        """
        self._finished.unlink(missing_ok=True)
        if model:
            fresh = self.folder / "model.partial"
            shutil.rmtree(fresh, ignore_errors=True)
            for part in model:
                part.save_pretrained(fresh)
            shutil.rmtree(self._model, ignore_errors=True)
            fresh.replace(self._model)
        tempnet.save_pretrained(self.tempnet)
        with whole_file(self._finished) as file:
            file.write(json.dumps({"steps": steps}).encode())

    def load(self) -> tuple[Any, Any, TempNet, dict[str, Any]]:
        """Model, tokenizer, TempNet and options of a finished run."""
        options = self.options()
        done = self.steps_done()
        if done is None:
            step = newest_complete(self.checkpoints).step
            reached = f"newest checkpoint {step}" if step > 0 else "no checkpoint yet"
            raise ValueError(
                f"expected a finished run in {str(self.folder)!r}, received one that has not finished ({reached} of "
                f"{options['steps']} steps). Run fit again, which resumes it: dro-temp lm fit {self.folder}"
            )
        if done < options["steps"]:
            print(f"note: this TempNet was trained for {done} steps of {options['steps']}")
        source = str(self._model) if self._model.exists() else options["model"]
        model, tokenizer = load_model(source, options["tokenizer"])
        tempnet = TempNet.from_pretrained(self.tempnet).eval()
        tempnet.check_fits(model)
        return model, tokenizer, tempnet, options
