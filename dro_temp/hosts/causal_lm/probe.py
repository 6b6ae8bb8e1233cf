"""What a model does is found out by running it, not by its name: a new kind of model is either right or refused."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp.functional import Scale, ScoreTransform, SoftCap
from dro_temp.hosts._hooks import hooks_of_others, registered
from dro_temp.hosts.causal_lm.examples import Example, close, example_of, logits_of, numbers_of
from dro_temp.hosts.causal_lm.head import LmHead, catching, output_embeddings

_LABELLED = (5, 10)  # positions whose labels a loss is asked about
_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError)


@torch.no_grad()
def probe_head(model: nn.Module) -> LmHead:
    """Run the model on a few tokens, hand it logits of our choice, and see what comes out.

    Raises:
        TypeError: the model has no head, or does not run on tokens alone.
    """
    head = output_embeddings(model)
    with example_of(model) as example:
        tried = output_embeddings(example.model)
        if (
            example.model is not model
        ):  # hooks of the user are watched in each forward, and need not see this one
            for number in hooks_of_others(tried, "_forward_hooks"):
                del tried._forward_hooks[number]
        transform = _transform(example, tried) if _is_plain(head) else _Unknown()
        with catching(tried) as caught:
            logits = logits_of(example())
        hidden = caught.once
        if isinstance(transform, _Unknown) or hidden is None:
            return LmHead(head, linear=False)
        if not _agree(LmHead(head, linear=True, transform=transform), hidden, logits):
            return LmHead(head, linear=False)
        return LmHead(head, linear=True, transform=transform, skippable=_skippable(example, tried, hidden))


@torch.no_grad()
def probe_shift(model: nn.Module) -> bool:
    """True if the label of a position is the next token, False if it is a label of its own (BART, XLNet).

    Of one label alone the loss is asked, for two tokens: what the two losses differ by is the difference of two
    logits, whatever else a loss consists of (that of a router, say).

    Raises:
        ValueError: the model's own loss is neither.
    """
    with example_of(model) as example:
        logits = logits_of(example())[0].float()
        answers = {_shifted(example, logits, at) for at in _LABELLED}
    if len(answers) == 1 and None not in answers:
        return bool(answers.pop())
    raise ValueError(
        "expected a model whose loss is the cross-entropy of next tokens or of labels in place, received "
        f"{type(model).__name__}, whose loss is neither. Pass shifted=True or shifted=False, and labels to match."
    )


def _shifted(example: Example, logits: Tensor, at: int) -> bool | None:
    """Whether the label there is compared with the logits before; None if neither with them nor with its own."""
    known = example.tokens[0][example.tokens[0] < logits.shape[1]]
    gap = logits[at - 1, known] - logits[at, known]
    one, other = known[gap.argmax()], known[gap.argmin()]
    losses = [_loss_of_label(example, at, token) for token in (one, other)]
    if losses[0] is None or losses[1] is None:
        return True
    found = float(losses[1] - losses[0])
    shifted, unshifted = (float(logits[row, one] - logits[row, other]) for row in (at - 1, at))
    # Label smoothing takes a little off the difference.
    tolerated = 0.25 * abs(shifted - unshifted)
    if min(abs(found - shifted), abs(found - unshifted)) > tolerated:
        return None
    return abs(found - shifted) < abs(found - unshifted)


class _Unknown:
    """A transform that is none of ours."""


def _loss_of_label(example: Example, at: int, token: Tensor) -> Tensor | None:
    labels = torch.full_like(example.tokens, -100)
    labels[0, at] = token
    try:
        loss = getattr(example(labels=labels), "loss", None)
    except _REFUSALS:
        return None
    return loss.float() if isinstance(loss, Tensor) else None


def _is_plain(head: nn.Module) -> bool:
    """Whether the module is a matrix product; a subclass or a wrapped or sharded layer may be something else.

    A hook before it changes what the head is given, which every hook sees, and one behind it is watched in each
    forward; one in backward would not be called.
    """
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return False
    wrapped = "forward" in vars(head)  # accelerate's offloading, for one
    hooked = hooks_of_others(head, "_backward_pre_hooks", "_backward_hooks")
    whole = type(weight.data) is Tensor and not weight.is_meta
    return type(head).forward is nn.Linear.forward and not wrapped and not hooked and whole


def _transform(example: Example, head: nn.Module) -> ScoreTransform | _Unknown | None:
    """What the model makes of its head's output; unknown, too, if it does not look at it."""
    # In float32, for what bfloat16 cannot tell apart; in the head's own precision, for models that insist on it.
    for precise in (True, False):
        given: list[Tensor] = []
        thread = threading.get_ident()

        def replace(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Tensor | None:
            if output is None or threading.get_ident() != thread:  # noqa: B023
                return None
            return _ramp(output, given, precise)  # noqa: B023

        handle = registered(head.register_forward_hook, replace)
        try:
            came = logits_of(example())
        except _REFUSALS:
            continue
        finally:
            handle.remove()
        if len(given) != 1 or came.shape != given[0].shape:
            return _Unknown()
        found = _fit(example.model, given[0], came)
        if not isinstance(found, _Unknown):
            return found
    return _Unknown()


def _ramp(output: Tensor, given: list[Tensor], precise: bool) -> Tensor:
    # Over many sizes and both signs: tiny random models never come near a cap of 30.
    half = max(output.shape[-1] // 2, 1)
    sizes = torch.logspace(-2, 4, half)
    ramp = torch.cat([-sizes.flip(0), sizes])[: output.shape[-1]]
    ramp = nn.functional.pad(ramp, (0, output.shape[-1] - len(ramp)))
    dtype = torch.promote_types(output.dtype, torch.float32) if precise else output.dtype
    given.append(ramp.to(output.device, dtype).expand(output.shape).clone())
    return given[-1]


def _fit(model: nn.Module, given: Tensor, came: Tensor) -> ScoreTransform | _Unknown | None:
    z, f = given.double(), came.double()
    precise = max(torch.finfo(came.dtype).eps, torch.finfo(given.dtype).eps) * 8

    def fits(guess: Tensor) -> bool:
        return bool(((f - guess).abs() <= precise * guess.abs() + precise * 1e-2).all())

    if fits(z):
        return None
    top = int(z[0, 0].argmax())
    factor, cap = float(f[0, 0, top] / z[0, 0, top]), float(f[0, 0, top])
    if factor > 0 and fits(factor * z):
        return Scale(_exact(model, factor))
    if cap > 0 and fits(cap * (z / cap).tanh()):
        return SoftCap(_exact(model, cap))
    return _Unknown()


def _exact(model: nn.Module, measured: float) -> float:
    """The number that the configuration holds, or one over it, if that is what was measured."""
    numbers = [
        v for v in numbers_of(model).values() if isinstance(v, int | float) and not isinstance(v, bool)
    ]
    candidates = [c for v in numbers if v for c in (float(v), 1.0 / v)]
    near = [c for c in candidates if abs(c - measured) <= 0.01 * abs(measured)]
    return min(near, key=lambda c: abs(c - measured), default=measured)


def _agree(head: LmHead, hidden: Tensor, logits: Tensor) -> bool:
    z = hidden @ head.weight.T if head.bias is None else nn.functional.linear(hidden, head.weight, head.bias)
    z = z if head.transform is None else head.transform(z)
    return close(logits, z)


def _skippable(example: Example, head: nn.Module, hidden: Tensor) -> bool:
    try:
        with catching(head, skip=True) as caught:
            example()
    except _REFUSALS:
        return False
    return caught.once is not None and torch.equal(caught.once, hidden)
