"""Where numbers are logged during training: accelerate's trackers, and one that writes a CSV file."""

import csv
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dro_temp._files import whole_file
from dro_temp._optional import optional_module
from dro_temp.cli.messages import require

Tracker: TypeAlias = Literal["csv", "tensorboard", "wandb"]


class CsvLog:
    """Rows of numbers by step, in a file that has a column for every name that was logged.

    A run that resumes has logged steps which it now takes again: their rows are left out.

    Args:
        path: the file.
        step: the step from which the run goes on.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.columns = path, ["step"]
        rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or self.columns)
                rows = [row for row in reader if row["step"].isdigit() and int(row["step"]) <= step]
        self._write(rows)

    def log(self, values: dict[str, float], step: int) -> None:
        """Append a row."""
        further = [name for name in values if name not in self.columns]
        if further:
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            self.columns += further
            self._write(rows)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow({"step": step, **values})

    def _write(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as out:
            lines = [self.columns, *([row.get(name) or "" for name in self.columns] for row in rows)]
            for line in lines:
                out.write((",".join(line) + "\n").encode())


def trackers(names: Sequence[Tracker], folder: Path, step: int) -> tuple[list[Any], dict[str, Any]]:
    """What `Accelerator(log_with=...)` takes, and the options for `init_trackers` under which a run goes on.

    Raises:
        ImportError: a package of one of them is missing, which accelerate would pass over in silence.
    """
    found: list[Any] = []
    options: dict[str, Any] = {}
    for name in names:
        if name == "csv":
            found.append(_csv_tracker(folder / "log.csv", step))
            continue
        optional_module(name, "which --log asks for", extra="log")
        found.append(name)
        if name == "tensorboard":
            options[name] = {"purge_step": step + 1}
        else:
            options[name] = {
                "id": _identity(folder),
                "resume": "allow",
                "dir": str(folder),
                "name": folder.name,
            }
    return found, options


def _identity(folder: Path) -> str:
    """The same for a run whenever it goes on."""
    path = folder / "wandb-id.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _csv_tracker(path: Path, step: int) -> Any:
    module = require("accelerate.tracking")
    base: Any = module.GeneralTracker

    class CsvTracker(base):
        name, requires_logging_directory = "csv", False

        def __init__(self) -> None:
            super().__init__()
            self._log: CsvLog | None = None

        @property
        def tracker(self) -> CsvLog:
            if self._log is None:  # made at the first row, on the one process that logs
                self._log = CsvLog(path, step)
            return self._log

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            """Nothing: config.yaml has the options."""

        @module.on_main_process  # type: ignore[untyped-decorator]
        def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
            self.tracker.log(values, 0 if step is None else step)

    return CsvTracker()
