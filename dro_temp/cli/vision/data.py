"""Images with classes: glyphs by script, a folder for each class, a table of files, or `datasets`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dro_temp.cli.images import (
    Labelled,
    PixelImages,
    TableImages,
    all_of,
    check_there,
    column_of,
    folder_of_classes,
    held_out,
    hub_table,
    is_saved_table,
    is_table,
    of_table,
)
from dro_temp.datasets import GlyphScripts

#: The images that need no network.
SCRIPTS = "scripts"

_LABELS = ("label", "class", "labels", "fine_label")


@dataclass(frozen=True)
class Columns:
    """Names of columns; None for the usual ones."""

    image: str | None = None
    label: str | None = None


def labelled(
    source: str, columns: Columns, *, split: str = "train", option: str = "--data"
) -> tuple[Labelled, tuple[str, ...]]:
    """Images with class numbers, and the names of the classes; see `vision fit`. The split is that of scripts."""
    if source == SCRIPTS:
        scripts = GlyphScripts(split)
        return all_of(PixelImages(scripts.images), scripts.labels.tolist()), scripts.classes
    path = check_there(source, option)
    if path is not None and path.is_file() and is_table(path):
        found = of_table(path, columns.image, columns.label, _LABELS, "--label_column")
        return _numbered(found, source)
    if path is not None and path.is_dir() and not is_saved_table(path):
        return folder_of_classes(source, option)
    table = hub_table(source, option)
    image = column_of(
        table.column_names, columns.image, ("image", "img", "jpg", "png"), source, "--image_column"
    )
    label = column_of(table.column_names, columns.label, _LABELS, source, "--label_column")
    samples = all_of(TableImages(table, image), list(table[label]))
    names = getattr(table.features[label], "names", None)
    return _numbered(samples, source) if names is None else (samples, tuple(names))


def _numbered(samples: Labelled, source: str) -> tuple[Labelled, tuple[str, ...]]:
    """Labels as class numbers, in the order of their names, or of the numbers that they are."""
    labels = [str(label) for label in samples.others]
    whole = all(label.isdigit() for label in labels)
    names = sorted(set(labels), key=int) if whole else sorted(set(labels))
    if len(names) < 2:
        raise ValueError(
            f"expected at least two classes in {source!r}, received {names}. Pass --label_column with another column."
        )
    place = {name: i for i, name in enumerate(names)}
    return all_of(samples.images, [place[label] for label in labels]), tuple(names)


def of_classes(source: str, columns: Columns, names: Sequence[str], option: str) -> Labelled:
    """Images of a source whose classes are those, numbered as they are there."""
    split = "val" if option == "--val" else "test"
    samples, theirs = labelled(source, columns, split=split, option=option)
    unknown = [name for name in theirs if name not in names]
    if unknown:
        raise ValueError(
            f"expected the classes that are trained, {list(names)[:8]}, in {option} {source}, received "
            f"{unknown[:8]}. Name the classes alike."
        )
    number = [list(names).index(name) for name in theirs]
    return Labelled(samples.images, [number[label] for label in samples.others], samples.places)


class Source:
    """The data of a run of `vision fit` with these options."""

    def __init__(self, options: dict[str, Any]) -> None:
        columns, source = Columns(options["image_column"], options["label_column"]), options["data"]
        self.train, self.names = labelled(source, columns)
        beside = next((p for p in _beside(source) if p.is_dir()), None)
        if options["val"] is not None:
            self.val = of_classes(options["val"], columns, self.names, "--val")
        elif source == SCRIPTS:
            self.val = of_classes(SCRIPTS, columns, self.names, "--val")
        elif beside is not None:
            self.val = of_classes(str(beside), columns, self.names, "--val")
        else:
            self.train, self.val = held_out(self.train, len(self.train), options["seed"])
        self.val = self.val.first(options["val_images"], options["seed"])


def _beside(source: str) -> list[Path]:
    """Where held-out images are, of a folder that has its training images in one named train."""
    path = Path(source).expanduser()
    return [path / name for name in ("val", "validation", "test")] if (path / "train").is_dir() else []
