"""open_clip's own command with a temperature for every image and every text, on glyphs and their names.

python examples/clip_open_clip.py                                  resumes after Ctrl-C
python examples/clip_open_clip.py --epochs 10 --precision amp_bf16 --grad-checkpointing
python examples/clip_open_clip.py --out runs/isogclr --scheme isogclr --rho 2 --tau-max 0.2
torchrun --nproc-per-node 2 examples/clip_open_clip.py --batch-size 64

It writes the glyphs as image files and a CSV file, and a tiny model's configuration, as open_clip reads them. All
further options go to `python -m dro_temp.integrations.open_clip`, which needs nothing else for data of your own.
"""

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dro_temp.datasets import GlyphCaptions
from dro_temp.integrations.open_clip import main as open_clip_main

TOWER = {"width": 64, "layers": 2}
MODEL = {
    "embed_dim": 64,
    "vision_cfg": TOWER | {"image_size": 32, "head_width": 32, "patch_size": 8},
    "text_cfg": TOWER | {"context_length": 16, "vocab_size": 49408, "heads": 2},
}
TEMPNET = "--scheme tempnet --rho 2 --tau-min 0.01 --tau-max 0.2 --tau-lr 1e-3"
TRAINING = "--lr 2e-3 --wd 0.02 --warmup 5 --grad-clip-norm 1 --precision fp32 --device cpu --workers 0"
LOGS = "--name glyphs --resume latest --log-every-n-steps 5"


def write_pairs(folder: Path, size: int, place: Path, shown: int = 500) -> None:
    """Image files, pairs.csv and some.csv with the first of its lines: columns filepath and title, tab-separated.

    The paths are those in `place`, where the folder is moved.
    """
    glyphs = GlyphCaptions("train", size=size)
    lines = []
    for i, (image, caption) in enumerate(zip(glyphs.images, glyphs.captions, strict=True)):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
        lines.append(f"{place / f'{i}.png'}\t{caption}")
    for name, some in (("pairs.csv", lines), ("some.csv", lines[:shown])):
        (folder / name).write_text("\n".join(["filepath\ttitle", *some]))


def write_model(folder: Path, model: dict[str, object]) -> None:
    """A model's configuration, for `--model local-dir:FOLDER`."""
    config = {"model_cfg": model, "preprocess_cfg": {"size": 32}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def main(args: Sequence[str] | None = None) -> int:
    """Run the example; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/clip-open-clip"), help="folder for data and logs"
    )
    parser.add_argument("--size", type=int, default=1280, help="pairs of a glyph and its name")
    parser.add_argument(
        "--quick", action="store_true", help="only show that everything runs: two epochs of four steps"
    )
    options, further = parser.parse_known_args(args)
    size, batch, epochs = (128, 32, 2) if options.quick else (options.size, 128, 5)

    data = (options.out / f"pairs-{size}").absolute()
    if not data.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.out) as unfinished:
            write_pairs(Path(unfinished), size, place=data)
            write_model(Path(unfinished), MODEL)
            with contextlib.suppress(OSError):  # of several processes, the first one's
                Path(unfinished).rename(data)
    words = [] if "--scheme" in further else TEMPNET.split()
    words += [*TRAINING.split(), *LOGS.split(), "--logs", str(options.out)]
    words += ["--batch-size", str(batch), "--epochs", str(epochs), "--aug-cfg", "scale=(1.0,1.0)"]
    words += [
        "--model",
        f"local-dir:{data}",
        "--train-data",
        f"{data}/pairs.csv",
        "--val-data",
        f"{data}/some.csv",
    ]
    try:
        status = open_clip_main([*words, *further])
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from the last finished epoch")
        return 130
    if status == 0 and int(os.environ.get("RANK", "0")) == 0:
        results = (options.out / "glyphs" / "checkpoints" / "results.jsonl").read_text().splitlines()
        last = json.loads(results[-1])
        for k in (1, 10):
            both = [last[f"{way}_R@{k}"] for way in ("image_to_text", "text_to_image")]
            print(
                f"R@{k}, mean of both directions, over {last['num_samples']} training pairs: {sum(both) / 2:.1%}"
            )
    return status


if __name__ == "__main__":
    raise SystemExit(main())
