"""Images from files, tables and data sets, each with what belongs to it: a caption, or a class."""

import csv
import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dro_temp.cli.loader import seed_of
from dro_temp.cli.messages import in_one_line, require

#: Files that count as images, as torchvision's ImageFolder has them.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_TABLES = (".csv", ".tsv", ".jsonl")
_MOST_CHECKED = 100_000


class Images(Protocol):
    """Images by their place."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> Any:
        """One image, as Pillow has them."""

    def name(self, index: int) -> str:
        """The same for the same image."""


class ImageFiles:
    """Images of files, read when they are needed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        """One image."""
        path = self.paths[index]
        try:
            with require("PIL.Image").open(path) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError) as error:  # SyntaxError: what Pillow raises for a broken PNG
            raise ValueError(
                f"expected an image in {str(path)!r}, received a file that cannot be read ({in_one_line(error)}). "
                "Remove it, and what belongs to it, from --data."
            ) from error

    def name(self, index: int) -> str:
        """The same for the same image."""
        return str(self.paths[index])


class TableImages:
    """Images in a column of a table of `datasets`."""

    def __init__(self, table: Any, column: str) -> None:
        self.table, self.column = table, column

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table)

    def __getitem__(self, index: int) -> Any:
        """One image."""
        return self.table[index][self.column].convert("RGB")

    def name(self, index: int) -> str:
        """The place in the table."""
        return f"row {index}"


class PixelImages:
    """Grey images, uint8 [n h w], as a data set of glyphs holds them; bright pixels are ink."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def __getitem__(self, index: int) -> Any:
        """One image."""
        return require("PIL.Image").fromarray(self.pixels[index].numpy()).convert("RGB")

    def name(self, index: int) -> str:
        """The place among the images."""
        return f"glyph {index}"


@dataclass(frozen=True)
class Labelled:
    """Images, and what belongs to each: a caption, or the number of a class."""

    images: Images
    others: Sequence[Any]
    places: Sequence[int]  # of the images that count, in their order

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.places)

    def item(self, index: int) -> tuple[Any, Any]:
        """An image and what belongs to it."""
        return self.images[self.places[index]], self.other(index)

    def other(self, index: int) -> Any:
        """What belongs to the image."""
        return self.others[self.places[index]]

    def name(self, index: int) -> str:
        """The same for the same image: a path, or a place."""
        return self.images.name(self.places[index])

    def part(self, chosen: Iterable[int]) -> "Labelled":
        """Some of the samples, numbered anew."""
        return Labelled(self.images, self.others, [self.places[i] for i in chosen])

    def first(self, most: int, seed: int) -> "Labelled":
        """A random part of at most so many."""
        if len(self) <= most:
            return self
        return self.part(sorted(range(len(self)), key=lambda i: seed_of("first", seed, i))[:most])


def all_of(images: Images, others: Sequence[Any]) -> Labelled:
    """Every image with what belongs to it."""
    return Labelled(images, others, range(len(images)))


def image_paths(folder: Path) -> list[Path]:
    """The images below a folder, in an order that is the same on every machine; raises where there are none."""
    found = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )
    if not found:
        raise ValueError(
            f"expected images in {str(folder)!r}, received a folder without any ({', '.join(SUFFIXES)}). Check --data."
        )
    return found


def folder_of_classes(source: str, option: str) -> tuple[Labelled, tuple[str, ...]]:
    """Images in one folder for each class, whose name is the class's."""
    path = check_there(source, option)
    if path is None or not path.is_dir():
        raise ValueError(
            f"expected a folder with one folder of images for each class, received {option} {source}, which is none. "
            f"Check the path, which is relative to {Path.cwd()}."
        )
    folder = path / "train" if option == "--data" and (path / "train").is_dir() else path
    names = tuple(sorted(place.name for place in folder.iterdir() if place.is_dir() and place.name[0] != "."))
    if len(names) < 2:
        raise ValueError(
            f"expected one folder of images for each of at least two classes in {str(folder)!r}, received "
            f"{list(names)}. Move the images of each class into a folder of its name."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        here = image_paths(folder / name)
        paths += here
        labels += [number] * len(here)
    return all_of(ImageFiles(paths), labels), names


def is_table(path: Path) -> bool:
    """Whether a file is a table whose rows name image files."""
    return path.suffix.lower() in _TABLES


def of_table(
    path: Path, image: str | None, other: str | None, others: tuple[str, ...], option: str
) -> Labelled:
    """Image files and what belongs to them, from the rows of a .csv, .tsv or .jsonl file.

    Args:
        path: the table; paths in it are relative to its folder.
        image: column of the paths, or the first that there is of the usual ones.
        other: column of what belongs to them, or the first that there is of `others`.
        others: usual names of that column.
        option: what is typed to name that column.
    """
    rows = _rows(path)
    names = list(rows[0]) if rows else []
    image = column_of(names, image, ("filepath", "file_name", "image", "path"), str(path), "--image_column")
    other = column_of(names, other, others, str(path), option)
    paths, values = [], []
    for number, row in enumerate(rows, start=1):
        if not row.get(image) or row.get(other) in (None, ""):
            raise ValueError(
                f"expected a path in {image!r} and something in {other!r} in every row of {str(path)!r}, received row "
                f"{number} without. Remove that row."
            )
        paths.append(path.parent / str(row[image]))
        values.append(row[other])
    _check_there(paths, path)
    return all_of(ImageFiles(paths), values)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                rows = [json.loads(line) for line in file if line.strip()]
            else:
                rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"expected a table in {str(path)!r}, received one that cannot be read ({in_one_line(error)}). Write it as "
            "UTF-8, a line of names first (.csv, .tsv), or one JSON object in each line (.jsonl)."
        ) from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"expected rows with named columns in {str(path)!r}, received {'none' if not rows else 'others'}. Write "
            "the names of the columns in the first line."
        )
    return rows


def _check_there(paths: Sequence[Path], table: Path) -> None:
    for path in paths[:: len(paths) // _MOST_CHECKED + 1]:
        if not path.is_file():
            raise ValueError(
                f"expected the images that {str(table)!r} names, received {str(path)!r}, which is not there. Paths are "
                "relative to the table's folder: mend them, or pass --image_column with another column."
            )


def column_of(
    names: Sequence[str], given: str | None, usual: tuple[str, ...], source: str, option: str
) -> str:
    """The column that was given, or the first usual one; raises where there is none."""
    wanted = usual if given is None else (given,)
    found = next((name for name in wanted if name in names), None)
    if found is None:
        near = difflib.get_close_matches(wanted[0], names, n=1, cutoff=0.0)
        raise ValueError(
            f"expected a column {' or '.join(map(repr, wanted))} in {source!r}, received {list(names)}. Pass {option} "
            f"{near[0] if near else 'NAME'}."
        )
    return found


def hub_table(source: str, option: str) -> Any:
    """A table of `datasets`: a .parquet file, a folder that `save_to_disk` wrote, or a name on the hub.

    Names are "name", "name:configuration", and each of these, or a folder, with "@split" at its end.
    """
    datasets = require("datasets")
    place, _, split = source.partition("@")
    path = Path(place).expanduser()
    try:
        if path.suffix.lower() == ".parquet":
            return datasets.load_dataset("parquet", data_files=str(path), split="train")
        if path.is_dir():
            saved = datasets.load_from_disk(str(path))
            return saved[split or "train"] if isinstance(saved, dict) else saved
        name, _, configuration = place.partition(":")
        return datasets.load_dataset(name, configuration or None, split=split or "train")
    except ImportError:
        raise
    except Exception as error:  # no such data set, split or connection, a damaged file: one answer
        raise ValueError(
            f"expected a file, a folder or a data set on the hub, received {option} {source}: no such path in "
            f"{Path.cwd()} could be read, and the hub gave none ({in_one_line(error, 300)}). Check the name; a split "
            "is named as name@validation."
        ) from error


def is_saved_table(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` of `datasets` wrote."""
    return any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def check_there(source: str, option: str) -> Path | None:
    """The path of a source, if it is one; None for a name on the hub; raises for a path where nothing is."""
    place = source.partition("@")[0]
    path = Path(place).expanduser()
    if path.exists():
        return path
    if path.suffix or source.startswith((".", "/", "~")):
        raise ValueError(
            f"expected a file or a folder, received {option} {source}, which is not there. Check the path, which is "
            f"relative to {Path.cwd()}; a data set on the hub is named without a suffix."
        )
    return None


def held_out(samples: Labelled, most: int, seed: int) -> tuple[Labelled, Labelled]:
    """All but some of the samples, and those: at most so many, or a tenth; one image is on one side only."""
    wanted = min(most, len(samples) // 10)
    by_image: dict[str, list[int]] = {}
    for i in range(len(samples)):
        by_image.setdefault(samples.name(i), []).append(i)
    # By place, not by path: a copy of the data is divided alike.
    order = sorted(by_image.values(), key=lambda places: seed_of("held out", seed, places[0]))
    chosen: set[int] = set()
    for places in order:
        if len(chosen) >= wanted:
            break
        chosen.update(places)
    return samples.part(i for i in range(len(samples)) if i not in chosen), samples.part(sorted(chosen))


def thumbnails(samples: Labelled, side: int = 64) -> Tensor:
    """The middles of images, uint8 [n 3 side side]."""
    pillow = require("PIL.ImageOps")
    images = (pillow.fit(samples.item(i)[0], (side, side)) for i in range(len(samples)))
    pixels = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images]
    return torch.stack(pixels).reshape(-1, side, side, 3).movedim(-1, 1)
