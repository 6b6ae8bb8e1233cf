"""Analyse the temperatures of a finished run of clip_glyphs.py: do similar concepts get similar temperatures?"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from glyphs.agreement import letters, report
from glyphs.finished import finished

from dro_temp.evaluation import near_duplicates
from dro_temp.plotting import image_extremes, temperature_by_concept, temperature_by_duplicates


@dataclass(frozen=True)
class Options:
    """Analyse the temperatures of the demo. Run examples/clip_glyphs.py first: about one minute on a CPU.

    The table shows how similar the temperatures of one concept are, for the trained and for an untrained network.
    Images of one name are a concept; so are names of one letter, whatever its marks ("with acute"). ICC is 1 where a
    concept has one temperature, 0 where concepts do not matter; p is that of shuffled concepts; ratio is the mean
    difference of two temperatures of one concept over that of two concepts. Neighbours: rank correlation of a
    temperature with the mean of its nearest neighbours', which are of other concepts. Brackets hold 95 % intervals.
    The table and four pictures go to the folder `temperatures` of the run.
    """

    run: Path = Path("runs/demo")
    """Folder of the run: the --out of examples/clip_glyphs.py."""
    seed: int = 0
    """Which of its seeds."""
    split: Literal["train", "val_seen", "val_unseen", "test_seen", "test_unseen"] = "test_seen"
    """The glyphs to look at: `*_seen` are in fonts, `*_unseen` of names that the training set does not have."""
    k: int = 10
    """Nearest neighbours; 5 to 50 are useful."""
    named: int = 8
    """Concepts that a picture names, at either end."""


def look(options: Options) -> None:
    """Print the table and draw the pictures."""
    began, ended = finished(options.run, options.seed)
    text = report(began, ended, options.split, options.k)
    print(f"{text}\n")

    pairs, tau = ended.data.splits[options.split], ended.temperatures(options.split)
    count = near_duplicates(pairs.images.flatten(1).float(), threshold=0.9)
    # One image per name, or similar fonts would fill the sheet with one glyph.
    first = dict(reversed([(name, i) for i, name in enumerate(pairs.name_index.tolist())]))
    one = [first[name] for name in range(len(pairs.names))]
    figures = {
        "images_by_name": temperature_by_concept(
            tau["image"], pairs.name_index, pairs.names, k=options.named
        ),
        "names_by_letter": temperature_by_concept(tau["text"], *letters(pairs), k=options.named),
        "images_by_duplicates": temperature_by_duplicates(tau["image"], count=count),
        "extremes": image_extremes(pairs.images[one], pairs.names, tau["image"][one], k=options.named),
    }
    out = options.run / "temperatures"
    out.mkdir(exist_ok=True)
    (out / "table.md").write_text(f"{text}\n", encoding="utf-8")
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")
    print("written:", *sorted(map(str, out.iterdir())), sep="\n  ")


def main(args: Sequence[str] | None = None) -> int:
    """Run the example; the exit code."""
    try:
        look(tyro.cli(Options, args=args, prog="glyph_temperatures.py"))
    except ValueError as error:
        print(f"glyph_temperatures.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
