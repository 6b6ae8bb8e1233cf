"""Images with captions: glyphs, a table of files, a folder, `datasets`, or webdataset shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dro_temp.cli.clip.shards import first_of_shards, is_shards, number_of, urls_of
from dro_temp.cli.images import (
    ImageFiles,
    Labelled,
    PixelImages,
    TableImages,
    all_of,
    check_there,
    column_of,
    folder_of_classes,
    held_out,
    hub_table,
    image_paths,
    is_saved_table,
    is_table,
    of_table,
)
from dro_temp.datasets import GlyphCaptions, GlyphScripts

#: The pairs that need no network.
GLYPHS = "glyphs"

_CAPTIONS = ("title", "caption", "text", "txt")
_METADATA = ("metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class Columns:
    """Names of columns; None for the usual ones."""

    image: str | None = None
    caption: str | None = None


def pairs(source: str, columns: Columns, *, split: str = "train", option: str = "--data") -> Labelled:
    """Images and captions of a source without shards, see `clip fit`; the split is that of glyphs."""
    if source == GLYPHS:
        glyphs = GlyphCaptions(split)
        return all_of(PixelImages(glyphs.images), glyphs.captions)
    path = check_there(source, option)
    if path is not None and path.is_file() and is_table(path):
        return _text(of_table(path, columns.image, columns.caption, _CAPTIONS, "--caption_column"), source)
    if path is not None and path.is_dir() and not is_saved_table(path):
        return _text(_folder(path, columns), source)
    table = hub_table(source, option)
    image = column_of(table.column_names, columns.image, ("image", "jpg", "png"), source, "--image_column")
    caption = column_of(table.column_names, columns.caption, _CAPTIONS, source, "--caption_column")
    return _text(all_of(TableImages(table, image), list(table[caption])), source)


def _folder(folder: Path, columns: Columns) -> Labelled:
    """Images below a folder: a table beside them names their captions, or a .txt file of the same name holds each."""
    for name in _METADATA:
        if (folder / name).is_file():
            return of_table(folder / name, columns.image, columns.caption, _CAPTIONS, "--caption_column")
    paths = image_paths(folder)
    captions = []
    for path in paths:
        beside = path.with_suffix(".txt")
        if not beside.is_file():
            raise ValueError(
                f"expected a caption for every image in {str(folder)!r}, received {path.name} without {beside.name}. "
                f"Write one .txt file for each image, or one table for all: {' or '.join(_METADATA)}."
            )
        captions.append(beside.read_text(encoding="utf-8").strip())
    return all_of(ImageFiles(paths), captions)


def _text(samples: Labelled, source: str) -> Labelled:
    for number, caption in enumerate(samples.others, start=1):
        if not isinstance(caption, str) or not caption.strip():
            what = "an empty one" if isinstance(caption, str) else type(caption).__name__
            raise ValueError(
                f"expected a text as every caption in {source!r}, received {what} as number {number}. Remove that "
                "sample, write several captions as several rows, or pass --caption_column."
            )
    return samples


def same_meaning(samples: Labelled) -> tuple[list[int], list[str], Tensor, Tensor]:
    """Different images and captions of the samples, and a label for each: the same where a pair joins them.

    Returns:
        Places of one sample for each image, the captions, labels of the images, and labels of the captions.
    """
    images: dict[str, int] = {}
    captions: dict[str, int] = {}
    root: dict[tuple[str, str], tuple[str, str]] = {}

    def label(node: tuple[str, str]) -> tuple[str, str]:
        while root.setdefault(node, node) != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for i in range(len(samples)):
        name, caption = samples.name(i), samples.other(i)
        images.setdefault(name, i)
        captions.setdefault(caption, i)
        root[label(("image", name))] = label(("caption", caption))
    number: dict[tuple[str, str], int] = {}
    of_image = [number.setdefault(label(("image", name)), len(number)) for name in images]
    of_caption = [number.setdefault(label(("caption", caption)), len(number)) for caption in captions]
    return list(images.values()), list(captions), torch.tensor(of_image), torch.tensor(of_caption)


# --- Zero-shot classification --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """Images with classes that have names.

    Args:
        samples: images with class numbers.
        names: of the classes.
        templates: prompts with {} in place of the name.
    """

    samples: Labelled
    names: tuple[str, ...]
    templates: tuple[str, ...]


def prompts(templates: str | None) -> tuple[str, ...]:
    """Templates of a file, one a line, or with | between them; raises for one without {}."""
    if templates is None:
        return ()
    path = Path(templates).expanduser()
    written = path.read_text(encoding="utf-8").splitlines() if path.is_file() else templates.split("|")
    found = tuple(line.strip() for line in written if line.strip())
    wrong = next((template for template in found if "{}" not in template), None if found else templates)
    if wrong is not None:
        raise ValueError(
            f"expected {{}} in place of the class in each of --templates, received {wrong!r}. Type --templates 'a "
            "photo of a {}.|a drawing of a {}.', or name a file with one in each line."
        )
    return found


def classes(
    source: str | None, templates: tuple[str, ...], *, glyphs: bool, split: str = "val"
) -> Classes | None:
    """A folder with one folder of images for each class; by default, for glyphs, the scripts that they belong to."""
    if source is None and not glyphs:
        return None
    if source is None:
        scripts = GlyphScripts(split)
        written = templates or ("{} small letter", "{} capital letter", "{} letter", "{}")
        return Classes(all_of(PixelImages(scripts.images), scripts.labels.tolist()), scripts.classes, written)
    samples, names = folder_of_classes(source, "--zero_shot")
    spoken = tuple(name.replace("_", " ") for name in names)
    return Classes(samples, spoken, templates or ("a photo of a {}.",))


# --- Of a run ------------------------------------------------------------------------------------------------


class Source:
    """The data of a run of `clip fit` with these options, found and read as far as their names."""

    def __init__(self, options: dict[str, Any]) -> None:
        columns, source = Columns(options["image_column"], options["caption_column"]), options["data"]
        self.urls = urls_of(source) if is_shards(source) else []
        self.train: Labelled | None = None
        self.val: Labelled | None = None
        if self.urls:
            self.samples = options["samples"] or number_of(self.urls)
        elif options["samples"] is not None:
            raise ValueError(
                f"expected --samples with shards alone, received it with --data {source}, whose pairs are counted. "
                "Leave it out."
            )
        else:
            self.train = pairs(source, columns)
        if options["val"] is not None:
            self.val = held_out_pairs(options["val"], columns, options["val_pairs"])
        elif source == GLYPHS:
            self.val = pairs(GLYPHS, columns, split="val_seen").first(options["val_pairs"], options["seed"])
        elif self.train is not None:
            self.train, self.val = held_out(self.train, options["val_pairs"], options["seed"])
        self.classes: Classes | None = classes(
            options["zero_shot"], prompts(options["templates"]), glyphs=source == GLYPHS
        )


def held_out_pairs(source: str, columns: Columns, most: int) -> Labelled:
    """Pairs for validation, from any source."""
    if is_shards(source):
        return first_of_shards(urls_of(source, "--val"), most)
    return pairs(source, columns, option="--val").first(most, 0)
