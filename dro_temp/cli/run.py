"""The folder of a run: written by `fit`, read by the other commands."""

import json
from pathlib import Path
from typing import Any, ClassVar

from dro_temp._files import check_writable, whole_file
from dro_temp.cli.checkpoints import Checkpoint, newest_complete
from dro_temp.cli.messages import in_one_line, require, say


class Run:
    """A run's folder; each kind of model has one of its own, which adds what it writes there."""

    command: ClassVar[str]  # what is typed before `fit`
    what: ClassVar[str]  # that is trained, for a note
    unit: ClassVar[str]  # of a run's length, also the option that sets it
    reads: ClassVar[tuple[str, ...]]  # options that other commands read
    free: ClassVar[tuple[str, ...]]  # options that may differ: the same run, elsewhere or for longer

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"  # the options, as `--config` takes them
        self.checkpoints = folder / "checkpoints"  # from which an interrupted run resumes
        self._finished = folder / "finished.json"  # written at the end

    @property
    def result(self) -> Path:
        """What a finished run has in any case."""
        return self._finished

    def typed(self, command: str) -> str:
        """A command on this folder, as it is typed."""
        return f"dro-temp {self.command} {command} {self.folder}"

    def done(self) -> int | None:
        """Length, in units, after which the result was written; None before the run is finished."""
        if not (self.result.exists() and self._finished.exists()):
            return None
        return int(self.written()[self.unit])

    def written(self) -> dict[str, Any]:
        """What `finished` wrote down."""
        try:
            written: dict[str, Any] = json.loads(self._finished.read_text(encoding="utf-8"))
            int(written[self.unit])
            return written
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"expected the number of {self.unit} of a finished run in {str(self._finished)!r}, received a damaged "
                f"file. Remove it and type {self.typed('fit')} with the options of {str(self.config)!r}."
            ) from None

    def options(self) -> dict[str, Any]:
        """What the run was started with."""
        if not self.config.exists():
            raise ValueError(
                f"expected the folder of a run in {str(self.folder)!r}, received one without config.yaml. Make one: "
                f"{self.typed('fit')}"
            )
        yaml = require("yaml")
        try:
            options = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            received = f"{type(options).__name__} in place of options"
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            options, received = None, f"no YAML ({in_one_line(error)})"
        if isinstance(options, dict):
            lacking = ", ".join(name for name in self.reads if name not in options)
            if not lacking:
                return options
            received = f"options without {lacking}"
        raise ValueError(
            f"expected the options of a run of {self.typed('fit')!r} in {str(self.config)!r}, received {received}. "
            "Mend the file, or fit into another folder."
        )

    def check_options(self, options: dict[str, Any]) -> None:
        """Raise where these options are not those of the run that is there, or its folder cannot be written to."""
        if self.config.exists():
            known = self.options()
            other = [
                f"{key}={value!r} (was {known[key]!r})"
                for key, value in sorted(options.items())
                if key not in self.free and known.get(key, value) != value
            ]
            if other:
                raise ValueError(
                    f"expected the options that {str(self.folder)!r} was started with, received other "
                    f"{', '.join(other)}. Pass another folder, or remove this one."
                )
        check_writable(self.folder)

    def start(self, length: int) -> Checkpoint | None:
        """The checkpoint from which a run of this length goes on, which is printed; None if it is finished."""
        done = self.done()
        if done is not None and done >= length:
            say(
                f"{self.folder} is finished: {done} {self.unit}. Nothing to do; next: {self.typed('eval')}. To "
                f"train longer, pass more than --{self.unit} {done}."
            )
            return None
        start = newest_complete(self.checkpoints, read=True)
        if done is not None and start.folder is None:
            raise ValueError(
                f"expected a complete checkpoint in {str(self.checkpoints)!r} to resume from after {done} {self.unit}, "
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

    def unfinished(self) -> None:
        """Say that what is here is about to be written anew."""
        self._finished.unlink(missing_ok=True)

    def finished(self, length: int, **further: Any) -> None:
        """Write down that all of the result is there, after so many units."""
        with whole_file(self._finished) as file:
            file.write(json.dumps({self.unit: length, **further}, indent=2).encode())

    def finished_options(self) -> dict[str, Any]:
        """The options of a finished run; raises where it is not finished."""
        options = self.options()
        done = self.done()
        if done is None:
            step = newest_complete(self.checkpoints).step
            reached = f"newest checkpoint {step}" if step > 0 else "no checkpoint yet"
            raise ValueError(
                f"expected a finished run in {str(self.folder)!r}, received one that has not finished ({reached} of "
                f"{options[self.unit]} {self.unit}). Run fit again, which resumes it: {self.typed('fit')}"
            )
        if done < options[self.unit]:
            print(f"note: this {self.what} was trained for {done} {self.unit} of {options[self.unit]}")
        return options
