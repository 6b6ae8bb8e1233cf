"""Small images with captions and classes, in every form in which the command line takes them."""

import csv
import io
import json
import tarfile
from pathlib import Path

import torch
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (30, 60, 220), "grey": (120, 120, 120)}
SHAPES = ("bar", "box", "stripe")

#: As small as open_clip's models are.
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def picture(number: int) -> tuple[Image.Image, str, str]:
    """An image, its caption and its class."""
    colour, shape = list(COLOURS)[number % 4], SHAPES[number // 4 % 3]
    g = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 40, (20, 20, 3), generator=g, dtype=torch.uint8)
    place = {
        "bar": (slice(4, 16), slice(8, 12)),
        "box": (slice(5, 15), slice(5, 15)),
        "stripe": (slice(9, 11), slice(None)),
    }
    pixels[place[shape]] = torch.tensor(COLOURS[colour], dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()), f"a {colour} {shape} number {number}", colour


def write_architecture(folder: Path) -> Path:
    path = folder / "tiny-clip.json"
    path.write_text(json.dumps(ARCHITECTURE))
    return path


def write_csv(folder: Path, count: int) -> Path:
    """Images, and a table of their paths and captions."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "title", "label"])
        for i in range(count):
            image, caption, label = picture(i)
            image.save(folder / "images" / f"{i:03}.png")
            table.writerow([f"images/{i:03}.png", caption, label])
    return folder / "pairs.csv"


def write_captions(folder: Path, count: int) -> Path:
    """Images with a text beside each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, caption, _ = picture(i)
        image.save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(caption)
    return folder


def write_classes(folder: Path, count: int, wrong: tuple[int, ...] = ()) -> Path:
    """A folder of images for each class; some in a wrong one."""
    names = list(COLOURS)
    for i in range(count):
        image, _, label = picture(i)
        if i in wrong:
            label = names[(names.index(label) + 1) % len(names)]
        (folder / label).mkdir(parents=True, exist_ok=True)
        image.save(folder / label / f"{i:03}.png")
    return folder


def write_shards(folder: Path, count: int, shards: int) -> str:
    """Webdataset shards, as a pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"pairs-{shard}.tar", "w") as archive:
            for i in range(shard, count, shards):
                image, caption, _ = picture(i)
                data = io.BytesIO()
                image.save(data, "png")
                for suffix, content in (("png", data.getvalue()), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{i:03}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return str(folder / f"pairs-{{0..{shards - 1}}}.tar")


def write_table(folder: Path, count: int) -> Path:
    """A folder that `datasets` saved."""
    import datasets

    rows = [picture(i) for i in range(count)]
    table = datasets.Dataset.from_dict(
        {
            "image": [r[0] for r in rows],
            "caption": [r[1] for r in rows],
            "label": [list(COLOURS).index(r[2]) for r in rows],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "caption": datasets.Value("string"),
                "label": datasets.ClassLabel(names=list(COLOURS)),
            }
        ),
    )
    table.save_to_disk(folder)
    return folder
