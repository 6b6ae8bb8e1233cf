"""What temperatures cost in generation, as a share of a token: hooks, prediction, division.

A GPT-2 of the given size with random weights and a vocabulary of 50,257, one text, TempNet over the logits. A step is
one forward of one token and the drawing of the next; nothing is attended to, which makes it a little cheaper than
real ones, and a share of it a little larger. Before each call a step runs untimed, so that a temperature finds the
caches as generation leaves them. The last two contenders are whole calls of `generate`.

  python benchmarks/generation.py
  python benchmarks/generation.py --shapes 1024,24 --rounds 30
"""

import copy
import itertools
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import Bar, Case, Contender, Plan, Problem, Step, Suite, arguments, run, shape
from torch import Tensor, nn

import dro_temp as dt

VOCABULARY, TOKENS = 50257, 16


@dataclass(frozen=True)
class GenerationProblem(Problem):
    """A model twice, once with hooks and once without.

    Args:
        plain: without.
        hooked: its copy, to which the processor belongs.
        processor: the processor.
        token: what is read next, [1 1].
        texts: one text, a token longer each time.
        found: what the last token came from, left by `before`.
    """

    plain: nn.Module
    hooked: nn.Module
    processor: dt.TemperatureLogitsProcessor
    token: Tensor
    texts: Iterator[Tensor]
    found: dict[str, Any] = field(default_factory=dict)

    def leaves(self) -> list[Tensor]:
        """Nothing is trained."""
        return []


def make_problem(shape: tuple[int, ...], options: Namespace) -> GenerationProblem:
    """A problem of shape (d, layers)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    d, layers = shape
    torch.manual_seed(0)
    heads = max(d // 64, 1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=d, n_layer=layers, n_head=heads, eos_token_id=None, pad_token_id=0
    )
    with torch.device(options.device):
        model = GPT2LMHeadModel(config).eval().requires_grad_(False)
        tempnet = dt.TempNet.for_lm(model, tau_min=0.1, tau_max=2.0).eval()
        token = torch.tensor([[42]])
    hooked = copy.deepcopy(model)
    processor = dt.TemperatureLogitsProcessor(hooked, tempnet)
    texts = (token.expand(1, length) for length in itertools.count(1))
    return GenerationProblem(model, hooked, processor, token, texts)


def _output(model: nn.Module, token: Tensor) -> Any:
    return model(token, use_cache=False, return_dict=True)


def _scores(output: Any) -> Tensor:
    return output.logits[:, -1].to(torch.float32, copy=True)  # as `generate` does


def step(p: GenerationProblem) -> Step:
    """A token of the model alone."""

    @torch.no_grad()
    def call() -> None:
        _scores(_output(p.plain, p.token)).softmax(1).multinomial(1)

    return call


def step_with(p: GenerationProblem) -> Step:
    """A token with its temperature."""

    @torch.no_grad()
    def call() -> None:
        scores = _scores(_output(p.hooked, p.token))
        p.processor(next(p.texts), scores).softmax(1).multinomial(1)

    return call


def before(p: GenerationProblem) -> Step:
    """A forward, and scores fresh from it."""

    @torch.no_grad()
    def call() -> None:
        p.found["output"] = _output(p.hooked, p.token)
        p.found["scores"] = _scores(p.found["output"])

    return call


def temperature(p: GenerationProblem) -> Step:
    """What is added to a step: the hooks, called by hand, and the processor's call."""
    before(p)()  # the first call warms up, and has no other before it
    model, head = p.hooked, p.hooked.get_output_embeddings()
    hidden, asked = torch.randn(1, 1, head.in_features, device=p.token.device), {"return_dict": True}

    @torch.no_grad()
    def call() -> None:
        for hook in model._forward_pre_hooks.values():
            hook(model, (p.token,))
        for hook in head._forward_pre_hooks.values():
            hook(head, (hidden,), {})
        for hook in model._forward_hooks.values():
            hook(model, (p.token,), asked, p.found["output"])
        p.processor(next(p.texts), p.found["scores"])

    return call


def _generate(model: nn.Module, token: Tensor, *processors: dt.TemperatureLogitsProcessor) -> Step:
    def call() -> None:
        model.generate(
            token,
            attention_mask=torch.ones_like(token),
            do_sample=True,
            max_new_tokens=TOKENS,
            logits_processor=[*processors],
        )

    return call


def generate(p: GenerationProblem) -> Step:
    """`generate` without temperatures."""
    return _generate(p.plain, p.token)


def generate_with(p: GenerationProblem) -> Step:
    """`generate` with them."""
    return _generate(p.hooked, p.token, p.processor)


CONTENDERS = (
    Contender("step", step, "a token of the model alone"),
    Contender("step-with", step_with, "a token with its temperature, hooks and all"),
    Contender("temperature", temperature, "hooks and the processor's call alone, after a step"),
    Contender("generate", generate, f"generate, {TOKENS} tokens"),
    Contender("generate-with", generate_with, f"generate with temperatures, {TOKENS} tokens"),
)


def bars(case: Case, options: Namespace) -> list[Bar]:
    """A temperature should be lost in a token's own cost."""
    whole = case.ratio("generate-with", "generate")
    return [
        Bar("temperature / step", case.ratio("temperature", "step"), 0.01),
        Bar("what temperatures add to generate", None if whole is None else whole - 1.0, 0.01),
    ]


def main() -> int:
    parser = arguments(__doc__, "generation", CONTENDERS, rounds=30, repeats=2)
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape("d", "layers"),
        default=[(768, 12)],
        metavar="D,LAYERS",
        help="sizes (default: 768,12, the 124 million parameters of GPT-2)",
    )
    suite = Suite(
        title="temperatures in generation",
        axes=("d", "layers"),
        contenders=CONTENDERS,
        baseline="step",
        problem=make_problem,
        small=(8, 1),
        bars=bars,
        before=before,
    )
    options = parser.parse_args()
    return run(suite, options, [Plan(s, memory=False) for s in options.shapes])


if __name__ == "__main__":
    sys.exit(main())
