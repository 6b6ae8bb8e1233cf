"""Running a model on a few tokens, without a trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp.hosts._twin import twin
from dro_temp.hosts.causal_lm.head import catching, output_embeddings, words_of

_POSITIONS = 16


@dataclass(frozen=True)
class Example:
    """A model, some tokens, and how it wants to be called.

    Args:
        model: the model.
        tokens: [1 16], none of them special.
        options: what to call the model with beside its inputs.
    """

    model: nn.Module
    tokens: Tensor
    options: dict[str, Any]

    def __call__(self, **inputs: Any) -> Any:
        """The model's output, the same at every call: some models draw random numbers in eval mode too (Reformer)."""
        devices = {p.device.index for p in self.model.parameters() if p.is_cuda}
        with torch.random.fork_rng(devices=devices):
            return self.model(input_ids=self.tokens, **self.options, **inputs)


@contextmanager
def example_of(model: nn.Module) -> Iterator[Example]:
    """An example, of a copy of the model's modules in eval mode: other threads may run the model meanwhile.

    Where a copy does not do what the model does, the model itself is run, and then put back as it was. Random numbers
    are put back, too.

    Raises:
        TypeError: the model does not run on tokens alone.
    """
    example = _example_apart(model)
    if example is not None:
        yield example
        return
    with _restored(model):
        model.eval()
        tokens = _example_tokens(model)
        yield Example(model, tokens, _options(model, tokens))


@torch.no_grad()
def _example_apart(model: nn.Module) -> Example | None:
    """An example of the copy, if it runs and calls the copy's own head; some wrappers hold on to the original."""
    try:
        copy = twin(model).eval()
        tokens = _example_tokens(copy)
        example = Example(copy, tokens, _options(copy, tokens))
        with catching(output_embeddings(copy)) as caught:
            example()
    except Exception:  # whatever a model that is not ours may raise
        return None
    return example if caught.hidden else None


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    # Not the modes alone: BigBird, given a short text, swaps its attention layers for others, and for good.
    states: list[dict[str, Any]] = []
    for module in model.modules():
        states += [vars(module), module._modules, module._buffers]
    held = [dict(state) for state in states]
    try:
        yield
    finally:
        for state, before in zip(states, held, strict=True):
            _put_back(state, before)


def _put_back(state: dict[str, Any], before: dict[str, Any]) -> None:
    """Write no more than what has changed: other threads read."""
    for name in [name for name in state if name not in before]:
        del state[name]
    for name, value in before.items():
        if name not in state or state[name] is not value:
            state[name] = value


@torch.no_grad()
def probe_options(model: nn.Module) -> dict[str, Any]:
    """What to call the model with, beside its inputs, if nothing is generated.

    Raises:
        TypeError: the model does not run on tokens alone.
    """
    with example_of(model) as example:
        return example.options


def logits_of(output: Any) -> Tensor:
    """The logits of a model's output."""
    logits = output.logits if hasattr(output, "logits") else output[0]
    assert isinstance(logits, Tensor)
    return logits


def close(first: Tensor, second: Tensor) -> bool:
    """Whether two kinds of logits are the same but for rounding."""
    slack = 32 * torch.finfo(first.dtype).eps
    same = first.shape == second.shape
    return same and bool(((first - second).abs() <= slack * (1 + first.abs())).all())


def numbers_of(model: nn.Module) -> dict[str, Any]:
    """What the configurations of the model and of its text part hold."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return {} if config is None else {**vars(config), **vars(text)}


def _example_tokens(model: nn.Module) -> Tensor:
    known = numbers_of(model)
    vocabulary = int(known.get("vocab_size") or words_of(output_embeddings(model)))
    named = [v for k, v in known.items() if k.endswith(("token_id", "token_index"))]
    special = {number for v in named for number in (v if isinstance(v, list) else [v])}
    plain = torch.tensor([k for k in range(min(vocabulary, 4096)) if k not in special] or [0])
    chosen = torch.randint(len(plain), (1, _POSITIONS), generator=torch.Generator().manual_seed(0))
    return plain[chosen].to(next(model.parameters()).device)


def _options(model: nn.Module, tokens: Tensor) -> dict[str, Any]:
    # A cache is memory that is not read here, and recurrent models write into theirs, which autograd does not forgive.
    # Some models compute something else without one (Dory): they are left as they are.
    usual, uncached = (_outcome(Example(model, tokens, options)) for options in ({}, {"use_cache": False}))
    if isinstance(uncached, Exception):
        if isinstance(usual, Exception):
            raise TypeError(
                f"expected a causal language model that runs on input_ids alone, received {type(model).__name__}, "
                f"which raised {type(usual).__name__}: {usual} Write a HostAdapter of your own for what else it needs."
            ) from usual
        return {}
    return {"use_cache": False} if isinstance(usual, Exception) or close(usual, uncached) else {}


def _outcome(example: Example) -> Tensor | Exception:
    try:
        return logits_of(example())
    except Exception as error:  # whatever a model that is not ours may raise
        return error
