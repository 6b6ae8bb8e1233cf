"""What the temperature of one token costs in generation, beside the head's own product.

One hidden state, a frozen linear head and a TempNet over its logits. Before each call the head's product runs,
untimed, so that a temperature finds the caches as generation leaves them: full of the head's weight.

  python benchmarks/decode.py
  python benchmarks/decode.py --shapes 4096,128256 --rounds 100
"""

import sys
from argparse import Namespace
from dataclasses import dataclass

import torch
from harness import Bar, Case, Contender, Plan, Problem, Step, Suite, arguments, run, shape
from torch import Tensor

import dro_temp as dt

SHAPES = [(768, 50304), (2048, 32000), (4096, 32000), (2048, 128256)]


@dataclass(frozen=True)
class DecodeProblem(Problem):
    """What generation has at hand for one token.

    Args:
        hidden: its hidden state, [1 d].
        weight: the head's weight, [vocabulary d].
        tempnet: TempNet over the logits.
    """

    hidden: Tensor
    weight: Tensor
    tempnet: dt.TempNet

    def leaves(self) -> list[Tensor]:
        """Nothing is trained."""
        return []


def make_problem(shape: tuple[int, ...], options: Namespace) -> DecodeProblem:
    """A problem of shape (d, vocabulary)."""
    d, vocabulary = shape
    torch.manual_seed(0)
    with torch.device(options.device):
        hidden = torch.randn(1, d)
        weight = torch.empty(vocabulary, d).normal_(std=d**-0.5)
        tempnet = dt.TempNet.for_logits(vocabulary, tau_min=0.1, tau_max=2.0)
    return DecodeProblem(hidden, weight, tempnet.eval().requires_grad_(False))


def head(p: DecodeProblem) -> Step:
    """The product that every token pays for."""
    logits = p.hidden.new_empty(1, len(p.weight))

    def step() -> None:
        torch.mm(p.hidden, p.weight.T, out=logits)

    return step


def naive(p: DecodeProblem) -> Step:
    """TempNet on the logits."""
    logits = p.hidden @ p.weight.T

    @torch.no_grad()
    def step() -> Tensor:
        return p.tempnet(support=dt.Support(logits))

    return step


def folded(p: DecodeProblem) -> Step:
    """The same temperature, with whatever a frozen head lets one prepare."""
    logits = p.hidden @ p.weight.T
    temperatures = p.tempnet.decoder(dt.interfaces.FrozenHead(p.weight))
    return lambda: temperatures(p.hidden, logits)


CONTENDERS = (
    Contender("head", head, "the product of the hidden state with the head's weight"),
    Contender("dro_temp-naive", naive, "TempNet on the logits"),
    Contender("dro_temp-folded", folded, "TempNet with its first layer folded into the frozen head"),
)


def bars(case: Case, options: Namespace) -> list[Bar]:
    """A temperature should be lost in the head's own cost."""
    return [Bar("temperature / head's product", case.ratio("dro_temp-folded", "head"), 0.03, aim=0.01)]


def main() -> int:
    parser = arguments(__doc__, "decode", CONTENDERS, rounds=30, repeats=10)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape("d", "vocabulary"),
        default=SHAPES,
        metavar="D,V",
        help="sizes (default: 768,50304 2048,32000 4096,32000 2048,128256)",
    )
    suite = Suite(
        title="temperature of one token",
        axes=("d", "vocabulary"),
        contenders=CONTENDERS,
        baseline="head",
        problem=make_problem,
        small=(8, 64),
        bars=bars,
        before=head,
    )
    options = parser.parse_args()
    return run(suite, options, [Plan(s, memory=False) for s in options.shapes])


if __name__ == "__main__":
    sys.exit(main())
