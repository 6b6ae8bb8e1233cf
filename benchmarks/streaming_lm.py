"""What a temperature per token costs in training a language model's head.

One forward and backward of a loss from hidden states [tokens, d] and a head's weight [vocabulary, d], with
gradients of both and of TempNet. The floor is the three matrix products that no implementation can avoid:
a ratio of 1.1 is ten percent for the softmax, the robust loss, TempNet and all their gradients.

  python -m benchmarks.streaming_lm                        all three shapes: about an hour on one thread
  python -m benchmarks.streaming_lm --shapes 2048,512,32000 --rounds 3
  python -m benchmarks.streaming_lm --only dro_temp-cpu cross-entropy --no-memory
  python -m benchmarks.streaming_lm --frozen               only TempNet is trained; ratios to the plain formula
  python -m benchmarks.streaming_lm --dtype bf16           half-precision hidden states and weight

A missing contender is listed with the command that installs it; pip install -e '.[bench]' has those that run on a CPU.
"""

import sys
from argparse import Namespace

from benchmarks.harness import Bar, Case, Plan, Suite, arguments, run, shape
from benchmarks.harness.bars import share
from benchmarks.lm import CONTENDERS, make_problem

SHAPES = [(2048, 512, 32000), (4096, 768, 50304), (2048, 1024, 128256)]
OURS = "dro_temp-cpu"


def baseline(options: Namespace) -> str:
    """The contender that times are divided by."""
    if options.frozen:
        return "plain-formula"
    return "dro_temp-fp32" if options.dtype == "bf16" else "floor"


def bars(case: Case, options: Namespace) -> list[Bar]:
    """Limits of the streamed loss."""
    scratch = share(case.scratch(OURS), case.scratch("plain-formula"))
    if options.frozen:
        return [
            Bar("frozen: time / plain formula", case.ratio(OURS, "plain-formula"), 0.40),
            Bar("frozen: scratch / plain formula's", scratch, 0.02),
        ]
    memory = Bar("scratch / plain formula's", scratch, 0.03, aim=0.01)
    if options.dtype == "bf16":
        # The float32 sum of the head's gradient alone exceeds this limit on scratch memory, which was set for float32.
        return [
            Bar("bf16: time / fp32 path", case.ratio(OURS, "dro_temp-fp32"), 0.65),
            Bar("bf16: time / its floor (an aim)", case.ratio(OURS, "floor"), 1.3),
            memory,
        ]
    # Folding TempNet's first layer into the head, and its gradient back: two products with 256 rows, against the
    # floor's three with one row for each token.
    extra = 171 / case.shape[0]
    return [
        Bar("time / floor", case.ratio(OURS, "floor"), 1.10 + extra, aim=1.05 + extra),
        Bar("time / cross-entropy without temperatures", case.ratio(OURS, "cross-entropy"), 1.0),
        memory,
    ]


def main() -> int:
    parser = arguments(__doc__, "streaming_lm", CONTENDERS, rounds=5)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape("tokens", "d", "vocabulary"),
        default=SHAPES,
        metavar="TOKENS,D,V",
        help="sizes (default: 2048,512,32000 4096,768,50304 2048,1024,128256)",
    )
    parser.add_argument("--frozen", action="store_true", help="hidden states and weight need no gradient")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="of hidden states and weight"
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="TempNet's (default: %(default)s)")
    options = parser.parse_args()
    variant = f"{'-frozen' if options.frozen else ''}{'-bf16' if options.dtype == 'bf16' else ''}"
    options.section = options.section or f"{options.device}{variant}"
    suite = Suite(
        title=f"loss over a vocabulary, forward + backward{variant.replace('-', ', ')}",
        axes=("tokens", "d", "vocabulary"),
        contenders=CONTENDERS,
        baseline=baseline(options),
        problem=make_problem,
        small=(16, 8, 64),
        bars=bars,
    )
    return run(suite, options, [Plan(s) for s in options.shapes])


if __name__ == "__main__":
    sys.exit(main())
