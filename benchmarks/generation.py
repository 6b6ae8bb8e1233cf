"""Cost of temperatures in generation as a share of a token: hooks, prediction, division.

A GPT-2 of the given size with random weights and a vocabulary of 50,257, one text, TempNet over the logits. A step is
the forward of one token and the sampling of the next; there is no context to attend to, so steps are slightly cheaper
than in practice and shares slightly larger. A step runs untimed before each call, so that the caches are in the state
of generation. The last two contenders are whole calls of `generate`.

  python -m benchmarks.generation
  python -m benchmarks.generation --shapes 1024,24 --rounds 30
"""

import copy
import itertools
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import dro_temp as dt
from benchmarks.harness import Bar, Case, Contender, Plan, Problem, Step, Suite, arguments, run, shape

VOCABULARY, TOKENS = 50257, 16


@dataclass(frozen=True)
class GenerationProblem(Problem):
    """A model with and without hooks.

    Args:
        plain: the model without hooks.
        hooked: its copy, to which the processor belongs.
        processor: the processor.
        token: the next input, [1 1].
        texts: one text, a token longer each time.
        last: output and scores of the last forward, stored by `before`.
    """

    plain: nn.Module
    hooked: nn.Module
    processor: dt.TemperatureLogitsProcessor
    token: Tensor
    texts: Iterator[Tensor]
    last: dict[str, Any] = field(default_factory=dict)

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
    """A forward, and new scores from it."""

    @torch.no_grad()
    def call() -> None:
        p.last["output"] = _output(p.hooked, p.token)
        p.last["scores"] = _scores(p.last["output"])

    return call


def temperature(p: GenerationProblem) -> Step:
    """What temperatures add to a step: the hooks, called directly, and the processor's call."""
    before(p)()  # for the first, warm-up call
    model, head = p.hooked, p.hooked.get_output_embeddings()
    hidden, arguments = torch.randn(1, 1, head.in_features, device=p.token.device), {"return_dict": True}

    @torch.no_grad()
    def call() -> None:
        for hook in model._forward_pre_hooks.values():
            hook(model, (p.token,))
        for hook in head._forward_hooks.values():
            hook(head, (hidden,), {}, p.last["output"].logits)
        for hook in model._forward_hooks.values():
            hook(model, (p.token,), arguments, p.last["output"])
        p.processor(next(p.texts), p.last["scores"])

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
    """`generate` with temperatures."""
    return _generate(p.hooked, p.token, p.processor)


CONTENDERS = (
    Contender("step", step, "a token of the model alone"),
    Contender("step-with", step_with, "a token with its temperature, hooks and all"),
    Contender("temperature", temperature, "hooks and the processor's call alone, after a step"),
    Contender("generate", generate, f"generate, {TOKENS} tokens"),
    Contender("generate-with", generate_with, f"generate with temperatures, {TOKENS} tokens"),
)


def bars(case: Case, options: Namespace) -> list[Bar]:
    """A temperature should be negligible beside a token."""
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
