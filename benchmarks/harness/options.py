"""The command line that the benchmarks share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness.contender import Contender

HOW_TO_READ = """
how to read the result
  ratio    process time of one step divided by the baseline's in the same round, in which every contender takes its
           turn, so that drifts cancel: median over the rounds (on a GPU: wall time)
  peak     megabytes (1e6 bytes) of resident memory that a step adds, in a fresh process
  scratch  the peak without the gradients that the step leaves
  loss     the contender's first loss; contenders that compute the same quantity should agree
"""


def arguments(doc: str, name: str, contenders: Sequence[Contender], *, rounds: int, repeats: int = 1):
    """A parser whose --help explains what is measured, the contenders, and how to read the result.

    Args:
        doc: what the benchmark measures.
        name: of its files under runs/benchmarks.
        contenders: listed in --help.
        rounds: default of --rounds.
        repeats: default of --repeats.
    """
    names = [c.name for c in contenders]
    width = max(map(len, names))
    peers = [f"  {c.name:{width}}  {c.about}{_install(c)}" for c in contenders]
    parser = argparse.ArgumentParser(
        description=doc,
        epilog="\n".join(["contenders", *peers]) + "\n" + HOW_TO_READ,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=repeats, help="calls in each round (default: %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help="contenders to run beside the baseline"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="one thread of the CPU, or a GPU"
    )
    parser.add_argument("--no-time", action="store_true", help="memory only")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmarks") / name,
        help="write OUT.json and OUT-SECTION.png (default: %(default)s)",
    )
    parser.add_argument("--section", help="section of OUT.json to replace (default: the device and variant)")
    return parser


def shape(*axes: str) -> Callable[[str], tuple[int, ...]]:
    """An argparse type: comma-separated sizes of the given axes."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.split(",")
        if len(parts) != len(axes) or not all(part.isdigit() and int(part) > 0 for part in parts):
            example = ",".join("64" for _ in axes)
            raise argparse.ArgumentTypeError(
                f"expected {','.join(axes)} as positive numbers, received {text!r}. Type for example {example}"
            )
        return tuple(map(int, parts))

    return parse


def _install(contender: Contender) -> str:
    return "" if contender.package is None else f" (pip install {contender.package})"
