"""Captions that belong to other images: do robust losses and temperatures for each input suffer less?

As clip_table.py, with 0, 20 and 40 % of the training captions shuffled among themselves; validation and test captions
are right. Trials are run at each share of noise, at half the learning rates of clip_table.py: with wrong captions twice
those fall apart for every arm.

  python benchmarks/reproduction/noisy_captions.py --noise 0.2 0.4
  python benchmarks/reproduction/noisy_captions.py --noise 0.4 --arms infonce tempnet-ours --seeds 0 1
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from clip_table import options_of, study, written
from glyph_pairs.data import Setting

ARMS = ("infonce", "sogclr", "isogclr", "rgcl-g", "tempnet-paper", "tempnet-ours")


def more(parser: argparse.ArgumentParser) -> None:
    """What this study asks beside."""
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.2, 0.4], help="shares shuffled")


def main() -> None:
    """Run the study at each share of noise."""
    assert __doc__ is not None
    options = options_of(__doc__, ARMS, "runs/reproduction/noisy", more)
    options.rates = options.rates or [2e-3, 4e-3]
    for noise in options.noise:
        setting = {"size": options.size, "batch": options.batch, "epochs": options.epochs, "noise": noise}
        found = study(options.arms, setting, options)
        written(found, options, f"noisy-{Setting(**setting).name}")


if __name__ == "__main__":
    main()
