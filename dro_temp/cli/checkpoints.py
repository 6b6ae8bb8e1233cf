"""Checkpoints of which one is always complete, and finding the newest complete one.

The Trainer writes a checkpoint file by file: the highest number may be a folder that a kill or a full disk left
half-written. Here a list of all files with their sizes is written last, in one step, and only then is an older
checkpoint deleted.
"""

import json
import os
import re
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dro_temp._files import whole_file
from dro_temp.cli.messages import require

#: The list of a checkpoint's files: there is one when all of them are written.
COMPLETE = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """The newest complete checkpoint, if there is one."""

    folder: Path | None = None
    step: int = 0
    #: Newer ones that are incomplete, and what they lack.
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Which was taken, which were skipped and why."""
        taken = "starts from the beginning" if self.folder is None else f"resumes from {self.folder.name}"
        skipped = "; ".join(f"{name}: {lack}" for name, lack in self.skipped.items())
        return taken + (f", skipping what is incomplete ({skipped})" if skipped else "")


def newest_complete(folder: Path, *, read: bool = False) -> Checkpoint:
    """The checkpoint from which a run resumes, of those in its folder of checkpoints.

    With `read` files are read to their end: a crash, or a copy, may leave them with their size and other bytes.
    """
    skipped: dict[str, str] = {}
    for step, place in _newest_first(folder):
        lack = lacks(place) or (damaged(place) if read else None)
        if lack is None:
            return Checkpoint(place, step, skipped)
        skipped[place.name] = lack
    return Checkpoint(skipped=skipped)


def checkpoint_callback() -> Any:
    """A callback of the Trainer that lists the files of each checkpoint, and keeps one complete checkpoint before it.

    Give the Trainer no `save_total_limit` of its own.
    """
    base: Any = require("transformers").TrainerCallback

    class CheckpointCallback(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.should_save:
                forget_after(Path(args.output_dir), state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            require("accelerate").PartialState().wait_for_everyone()  # each writes a file of its own
            if args.should_save:
                keep(Path(args.output_dir), state.global_step)

    return CheckpointCallback()


def place_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"checkpoint-{step}"


def forget_after(folder: Path, step: int) -> None:
    """Make the checkpoints after a step incomplete: their lists do not describe what is about to be written."""
    for later, place in _newest_first(folder):
        if later > step:
            (place / COMPLETE).unlink(missing_ok=True)


def keep(folder: Path, step: int) -> None:
    """Declare the checkpoint of a step complete; of those before it, one that is complete is left, the others not."""
    complete(place_of(folder, step))
    older = [place for earlier, place in _newest_first(folder) if earlier < step]
    kept = next((place for place in older if lacks(place) is None), None)
    for place in older:
        if place != kept:
            shutil.rmtree(place, ignore_errors=True)


def _newest_first(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints, also of incomplete ones; none if there is no such folder."""
    names = ((re.fullmatch(r"checkpoint-(\d+)", place.name), place) for place in folder.glob("checkpoint-*"))
    return sorted(((int(name[1]), place) for name, place in names if name and place.is_dir()), reverse=True)


def complete(folder: Path) -> None:
    """Write the list of a folder's files, once they are on the disk."""
    sizes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != COMPLETE:
            # Flushed first: a list must never name a file that is not on the disk.
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
            sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
    with whole_file(folder / COMPLETE) as out:
        out.write(json.dumps(sizes, indent=2).encode())


def lacks(folder: Path) -> str | None:
    """What a folder lacks of what its list says; None if it is complete. Quick, since no other file is read."""
    try:
        for name, size in json.loads((folder / COMPLETE).read_text(encoding="utf-8")).items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} of {size} bytes"
    except FileNotFoundError:
        return f"{COMPLETE} is missing"
    except (ValueError, AttributeError, TypeError):
        return f"{COMPLETE} is damaged"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None


def damaged(folder: Path) -> str | None:
    """Which file of a checkpoint cannot be read to its end; None if all can."""
    safetensors = require("safetensors")
    for file in sorted(folder.iterdir()):
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".safetensors":
                with safetensors.safe_open(file, "pt"):  # compares the header with the file's size
                    pass
            elif file.suffix in (".pt", ".pth", ".bin", ".pkl"):
                with zipfile.ZipFile(file) as archive:  # which has checksums
                    if archive.testzip() is not None:
                        return f"{file.name} is damaged"
        except (safetensors.SafetensorError, zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
            return f"{file.name} is damaged"
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
    return None
