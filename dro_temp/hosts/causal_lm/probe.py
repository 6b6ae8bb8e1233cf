"""What a model does is found out by running it, not by its name: a new kind of model is either right or refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp.functional import Scale, ScoreTransform, SoftCap
from dro_temp.hosts.causal_lm.head import LmHead, catching, output_embeddings

_POSITIONS = 16


@torch.no_grad()
def probe_head(model: nn.Module) -> LmHead:
    """Run the model on a few tokens, hand it logits of our choice, and see what comes out.

    Raises:
        TypeError: the model has no head, or does not run on tokens alone.
    """
    head = output_embeddings(model)
    with _quietly(model):
        tokens = example_tokens(model)
        plain = (
            type(head).forward is nn.Linear.forward
        )  # a subclass or a wrapped layer may compute something else
        transform, seen = _transform(model, head, tokens)
        if not (plain and seen) or isinstance(transform, _Unknown):
            return LmHead(head, linear=False)
        with catching(head) as caught:
            logits = logits_of(model(input_ids=tokens))
        found = LmHead(head, linear=True, transform=transform)
        hidden = caught.once
        if hidden is None or not _agree(found, hidden, logits):
            return LmHead(head, linear=False)
        return LmHead(
            head, linear=True, transform=transform, skippable=_skippable(model, head, tokens, hidden)
        )


@torch.no_grad()
def probe_shift(model: nn.Module) -> bool:
    """True if the label of a position is the next token, False if it is a label of its own (BART, XLNet).

    Raises:
        ValueError: the model's own loss is neither.
    """
    with _quietly(model):
        tokens = example_tokens(model)
        try:
            output = model(input_ids=tokens, labels=tokens)
        except (TypeError, ValueError):
            return True
        loss, logits = getattr(output, "loss", None), logits_of(output).float()
    if loss is None:
        return True
    shifted = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    unshifted = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    far, near = (float((loss.float() - guess).abs()) for guess in (unshifted, shifted))
    if min(far, near) > 0.3 * max(far, near):
        raise ValueError(
            f"expected a model whose loss is the cross-entropy of next tokens ({float(shifted):.4f} here) or of labels "
            f"in place ({float(unshifted):.4f}), received a loss of {float(loss):.4f}. Pass shifted=True or False."
        )
    return near < far


def logits_of(output: Any) -> Tensor:
    """The logits of a model's output."""
    logits = output.logits if hasattr(output, "logits") else output[0]
    assert isinstance(logits, Tensor)
    return logits


def example_tokens(model: nn.Module) -> Tensor:
    """Some tokens, [1 16], none of them special."""
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = int(getattr(text, "vocab_size", 0) or len(output_embeddings(model).weight))  # type: ignore[arg-type]
    special = {v for k, v in vars(text).items() if k.endswith("token_id") and isinstance(v, int)}
    plain = torch.tensor([k for k in range(min(vocabulary, 4096)) if k not in special] or [0])
    chosen = torch.randint(len(plain), (1, _POSITIONS), generator=torch.Generator().manual_seed(0))
    return plain[chosen].to(next(model.parameters()).device)


class _Unknown:
    """A transform that is none of ours."""


def _transform(
    model: nn.Module, head: nn.Module, tokens: Tensor
) -> tuple[ScoreTransform | _Unknown | None, bool]:
    """What the model makes of its head's output, and whether it looks at it at all."""
    given: list[Tensor] = []

    def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # Over many sizes and both signs: tiny random models never come near a cap of 30.
        sizes = torch.logspace(-2, 4, output[..., : output.shape[-1] // 2].shape[-1] or 1)
        ramp = torch.cat([-sizes.flip(0), sizes])[: output.shape[-1]]
        ramp = nn.functional.pad(ramp, (0, output.shape[-1] - len(ramp)))
        given.append(ramp.to(output).expand_as(output).clone())
        return given[-1]

    handle = head.register_forward_hook(replace)
    try:
        came = logits_of(_run(model, tokens))
    finally:
        handle.remove()
    if len(given) != 1 or came.shape != given[0].shape:
        return _Unknown(), False
    z, f = given[0].double(), came.double()
    precise = max(torch.finfo(came.dtype).eps, torch.finfo(given[0].dtype).eps) * 8

    def fits(guess: Tensor) -> bool:
        return bool(((f - guess).abs() <= precise * guess.abs() + precise * 1e-2).all())

    if fits(z):
        return None, True
    top = int(z[0, 0].argmax())
    factor, cap = float(f[0, 0, top] / z[0, 0, top]), float(f[0, 0, top])
    if factor > 0 and fits(factor * z):
        return Scale(_exact(model, factor)), True
    if cap > 0 and fits(cap * (z / cap).tanh()):
        return SoftCap(_exact(model, cap)), True
    return _Unknown(), True


def _exact(model: nn.Module, measured: float) -> float:
    """The number that the configuration holds, or one over it, if that is what was measured."""
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    numbers = [
        float(v) for v in vars(text).values() if isinstance(v, int | float) and v and not isinstance(v, bool)
    ]
    candidates = [c for v in numbers for c in (v, 1.0 / v)]
    near = [c for c in candidates if abs(c - measured) <= 0.01 * abs(measured)]
    return min(near, key=lambda c: abs(c - measured), default=measured)


def _agree(head: LmHead, hidden: Tensor, logits: Tensor) -> bool:
    z = hidden @ head.weight.T if head.bias is None else nn.functional.linear(hidden, head.weight, head.bias)
    z = z if head.transform is None else head.transform(z)
    slack = 32 * torch.finfo(logits.dtype).eps
    return z.shape == logits.shape and bool(((z - logits).abs() <= slack * (1 + logits.abs())).all())


def _skippable(model: nn.Module, head: nn.Module, tokens: Tensor, hidden: Tensor) -> bool:
    try:
        with catching(head, skip=True) as caught:
            model(input_ids=tokens)
    except (RuntimeError, ValueError, IndexError):
        return False
    return caught.once is not None and torch.equal(caught.once, hidden)


def _run(model: nn.Module, tokens: Tensor) -> Any:
    try:
        return model(input_ids=tokens)
    except Exception as error:
        raise TypeError(
            f"expected a causal language model that runs on input_ids alone, received {type(model).__name__}, which "
            f"raised {type(error).__name__}: {error}. Write a HostAdapter of your own for what else it needs."
        ) from error


@contextmanager
def _quietly(model: nn.Module) -> Iterator[None]:
    """In eval mode; every module's mode, and the random numbers, as they were afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
