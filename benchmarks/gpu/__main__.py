"""Times on one NVIDIA GPU, as ratios to the products that no implementation can avoid.

python -m benchmarks.gpu                 everything, about four minutes on an H200
python -m benchmarks.gpu rows            the head of a language model
python -m benchmarks.gpu steps           whole training steps: a CLIP, a classifier, a language model
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch

from benchmarks.harness.timing import machine

PARTS = ("rows", "steps")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks/gpu.json"), help="default: %(default)s"
    )
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"expected parts of {PARTS}, received {sorted(unknown)}")
    if not torch.cuda.is_available():
        print("expected an NVIDIA GPU, found none: run this on a machine with one", file=sys.stderr)
        return 2
    about = machine()
    print(about)
    results = {"machine": about}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part in options.parts or PARTS:
        results[part] = importlib.import_module(f"benchmarks.gpu.{part}").main(options.rounds)
        options.out.write_text(json.dumps(results, indent=1))
    print(f"saved {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
