"""Times on one NVIDIA GPU, as ratios to the products that no implementation can avoid.

python -m benchmarks.gpu                 everything, about four minutes on an H200, then every bar and its ratio
python -m benchmarks.gpu rows            the head of a language model
python -m benchmarks.gpu pairs           contrastive losses, both sides of a batch of pairs
python -m benchmarks.gpu steps           whole training steps: a CLIP, a classifier, a language model
python -m benchmarks.gpu --dry-run       rows and pairs at tiny sizes on the CPU: does every contender run?

Each table is one interleaved run: every contender takes its turn in every round, and the ratio is taken round by
round. The first contender of a table is the floor. The last table sets each bar beside its ratio; a bar whose
contender is not installed, or whose part did not run, is "not measured". The file holds all tables, with device,
versions and date. Other packages, each used where it is installed: liger-kernel, cut-cross-entropy, quack-kernels,
open_clip_torch; timm and transformers for whole steps.
"""

import argparse
import importlib
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu.bars import judge, show
from benchmarks.harness.results import dumps
from benchmarks.harness.timing import machine

PARTS = ("rows", "pairs", "steps")
DRY = ("rows", "pairs")
PEERS = (
    "triton", "transformers", "timm", "open_clip_torch", "liger-kernel", "cut-cross-entropy", "quack-kernels"
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """Of the packages that times depend on; None where one is not installed."""
    found: dict[str, str | None] = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks/gpu.json"), help="default: %(default)s"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny sizes on the CPU; its times mean nothing"
    )
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"expected parts of {PARTS}, received {sorted(unknown)}")
    if options.dry_run and "steps" in options.parts:
        parser.error(f"expected parts of {DRY} with --dry-run, received 'steps'")
    if not options.dry_run and not torch.cuda.is_available():
        print("expected an NVIDIA GPU, found none: run this on a machine with one", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda")
    about = machine() | {"packages": versions()}
    print(about)
    results = {"machine": about, "seconds": {}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for part in options.parts or (DRY if options.dry_run else PARTS):
        start = time.perf_counter()
        results[part] = importlib.import_module(f"benchmarks.gpu.{part}").main(options.rounds, device)
        results["seconds"][part] = round(time.perf_counter() - start, 1)
        print(f"\n{part}: {results['seconds'][part]} s", flush=True)
        options.out.write_text(f"{dumps(results)}\n", encoding="utf-8")
    results["bars"] = judge(results)
    show(results["bars"])
    options.out.write_text(f"{dumps(results)}\n", encoding="utf-8")
    print(f"saved {options.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
