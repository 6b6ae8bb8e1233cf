"""What the robust contrastive loss costs, with a temperature per image and per caption.

One forward and backward from unit features of both towers [pairs, d], with gradients of both and of every
temperature, and moving averages of every sample. Temperatures come from tables, which cost nothing, or from two
TempNets, whose own cost is shown beside. Two floors: three matrix products, if the pairs x pairs
similarities are kept from forward to backward; four, if memory must stay linear in the number of pairs.

  python -m benchmarks.streaming_pairs                     times to 8192 pairs, memory to 65536: half an hour
  python -m benchmarks.streaming_pairs --shapes 4096,512 --memory-shapes 16384,512 --rounds 3
  python -m benchmarks.streaming_pairs --large --rounds 1  times at the memory shapes as well: hours
  python -m benchmarks.streaming_pairs --only dro_temp-recomputing floor4 --no-memory

A contender that does not fit into memory is reported as such. A missing one is listed with the command that installs
it; pip install -e '.[bench]' has those that run on a CPU.
"""

import sys
from argparse import Namespace

from benchmarks.harness import Bar, Case, Plan, Suite, arguments, run, shape
from benchmarks.pairs import CONTENDERS, make_problem

SHAPES = [(4096, 512), (8192, 512)]
MEMORY_SHAPES = [(16384, 512), (32768, 512), (65536, 512)]
CACHED, RECOMPUTING = "dro_temp-cached", "dro_temp-recomputing"


def bars(case: Case, options: Namespace) -> list[Bar]:
    """Limits of the streamed losses."""
    result = [
        Bar("similarities kept: time / three products", case.ratio(CACHED, "floor3"), 1.15),
        Bar("computed twice: time / four products", case.ratio(RECOMPUTING, "floor4"), 1.15),
    ]
    if not case.seconds:
        result.clear()
    limit = {16384: 150.0, 65536: 1000.0}.get(case.shape[0])
    if limit is not None:
        text = "computed twice: peak over inputs, gradients included"
        result.append(Bar(text, case.peak(RECOMPUTING), limit, unit=" MB"))
        result.append(Bar(f"{text}, with TempNets", case.peak(f"{RECOMPUTING}-tempnets"), limit, unit=" MB"))
    return result


def main() -> int:
    parser = arguments(__doc__, "streaming_pairs", CONTENDERS, rounds=7)
    sizes = shape("pairs", "d")
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=sizes,
        default=SHAPES,
        metavar="PAIRS,D",
        help="sizes for time and memory (default: 4096,512 8192,512)",
    )
    parser.add_argument(
        "--memory-shapes",
        nargs="*",
        type=sizes,
        default=MEMORY_SHAPES,
        metavar="PAIRS,D",
        help="sizes for memory only (default: 16384,512 32768,512 65536,512)",
    )
    parser.add_argument("--large", action="store_true", help="time at those sizes as well")
    parser.add_argument("--dropout", type=float, default=0.0, help="TempNets' (default: %(default)s)")
    options = parser.parse_args()
    suite = Suite(
        title="contrastive loss on pairs, forward + backward",
        axes=("pairs", "d"),
        contenders=CONTENDERS,
        baseline="floor3",
        problem=make_problem,
        small=(8, 16),
        bars=bars,
    )
    plans = [Plan(s) for s in options.shapes]
    return run(suite, options, plans + [Plan(s, time=options.large) for s in options.memory_shapes])


if __name__ == "__main__":
    sys.exit(main())
