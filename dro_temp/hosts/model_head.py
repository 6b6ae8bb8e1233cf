"""The head of a causal language model: what it computes, its input in a forward, and whether either has changed.

What a model does is found out by running it on a few tokens: names are never compared, and no model is guessed. The
library speaks of a head in four ways:

- `predictors.HeadShape`: its sizes alone, by which a saved TempNet recognises the model that it was made for;
- `hosts.ModelHead` (here): the layer as it was found in a model, with what the model does to its output;
- `FrozenHead`: its weights, fixed, with a predictor's projection of the logits folded into them;
- `integrations.transformers.generation.HeadTemperatures`: a predictor bound to a `ModelHead`, which gives the
  rows of generation their temperatures through a `FrozenHead`.
"""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dro_temp._modes import evaluating
from dro_temp.functional import Scale, ScoreTransform, SoftCap
from dro_temp.hosts._modules import add_hook, foreign_hooks, shadow_copy


@dataclass(frozen=True)
class ModelHead:
    """The output embeddings of a causal language model.

    Args:
        module: from [... d] hidden states to [... vocabulary].
        linear: True if the model's logits are exactly `transform(hidden @ weight.T + bias)`.
        transform: what the model does to the head's output: `SoftCap`, `Scale`, or None for nothing.
        skippable: True if the model runs when its head is handed one position only, so that logits which are
            not read are not computed.
    """

    module: nn.Module
    linear: bool
    transform: ScoreTransform | None = None
    skippable: bool = False

    @property
    def weight(self) -> Tensor:
        """[vocabulary d]; of a linear head."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """[vocabulary], or None."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None


def output_embeddings(model: nn.Module) -> nn.Module:
    """The model's head."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise TypeError(
            f"expected a decoder-only causal language model, received {type(model).__name__}, an encoder-decoder, "
            "whose rows depend on a second input. Load its decoder alone (AutoModelForCausalLM), or write a "
            "HostAdapter of your own."
        )
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    weight = getattr(head, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.dim() == 2
    # A quantised layer keeps its weight in another form.
    packed = all(isinstance(getattr(head, size, None), int) for size in ("in_features", "out_features"))
    if not isinstance(head, nn.Module) or not (matrix or packed):
        raise TypeError(
            f"expected a causal language model with one head, get_output_embeddings() with a weight "
            f"[vocabulary, d], received {type(model).__name__}, whose head is {type(head).__name__}. Load the model "
            "with AutoModelForCausalLM, or wrap logits of your own in a HostAdapter."
        )
    return head


def outcomes_of(head: nn.Module) -> int:
    """Size of a head's vocabulary."""
    weight: Any = getattr(head, "weight", None)
    plain = isinstance(weight, Tensor) and weight.dim() == 2
    if plain and weight.shape[1] == getattr(head, "in_features", weight.shape[1]):
        return len(weight)
    return int(head.out_features)  # type: ignore[arg-type]  # a linear layer that packs its weight


def config_values(model: nn.Module) -> dict[str, Any]:
    """What the configurations of the model and of its text part hold."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return {} if config is None else {**vars(config), **vars(text)}


class Captured(NamedTuple):
    """What went through a head in one forward of its model."""

    output: Any  #: of the model
    hidden: Tensor | None  #: the head's input; None if it was not called exactly once
    called: bool  #: whether it was called at all
    changed: bool  #: whether a user's hook replaced what the head returned


def capture(head: nn.Module, run: Callable[[], Any], *, skip: bool = False) -> Captured:
    """Call `run`, which runs the model, and capture the input of its head, in this thread.

    With `skip` the head is passed the first position only: its output is not needed.
    """
    inputs: list[Tensor] = []
    returned: list[tuple[int, int]] = []
    changed: list[bool] = []
    compiling = torch.compiler.is_compiling()
    thread = None if compiling else threading.get_ident()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or (thread is not None and threading.get_ident() != thread):
            return None
        inputs.append(args[0] if args else next(iter(kwargs.values())))
        if not skip:
            return None
        first = inputs[-1][..., :1, :]
        return ((first, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): first})

    def first_after(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if output is not None and threading.get_ident() == thread:
            returned[:] = [_identity(output)]

    def last_after(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if output is not None and threading.get_ident() == thread:
            changed.append(returned != [_identity(output)])

    if compiling:  # one thread traces, and cannot take a lock
        handles = [head.register_forward_pre_hook(before, with_kwargs=True)]
    else:
        handles = [add_hook(head.register_forward_pre_hook, before)]
        if head._forward_hooks and foreign_hooks(head, "_forward_hooks"):
            # What the head returned, against what these hooks left of it.
            foremost = partial(head.register_forward_hook, prepend=True)
            handles += [add_hook(foremost, first_after), add_hook(head.register_forward_hook, last_after)]
    try:
        output = run()
    finally:
        for handle in handles:
            handle.remove()
    return Captured(output, inputs[0] if len(inputs) == 1 else None, bool(inputs), any(changed))


def _identity(output: Any) -> tuple[int, int]:
    """Differs for another tensor, and for this one once it is written to."""
    counted = isinstance(output, Tensor) and not torch.is_inference(output)
    return id(output), output._version if counted else 0


class HeadSnapshot:
    """All that trial runs of a model depend on: its head, what wraps it, and numbers that may go into its logits."""

    def __init__(self, model: nn.Module) -> None:
        head = output_embeddings(model)
        around = (m for m in model.modules() if m is not head and any(part is head for part in m.modules()))
        modules = [head, *around]
        self._modules = tuple(map(weakref.ref, modules))
        self._state = _state(model, *modules)

    def is_outdated(self, model: nn.Module) -> bool:
        """Whether trial runs might come out differently now."""
        modules = [reference() for reference in self._modules]
        if not modules or None in modules or output_embeddings(model) is not modules[0]:
            return True
        return _state(model, *modules) != self._state

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles belong to another model, of which nothing is known yet."""
        return {"_modules": (), "_state": ()}


def _state(model: nn.Module, head: Any, *around: Any) -> tuple[Any, ...]:
    weight = getattr(head, "weight", None)
    shape = (weight.shape, weight.dtype) if isinstance(weight, Tensor) else type(weight)
    # Hooks after the head are watched in each forward.
    hooks = foreign_hooks(head, "_forward_pre_hooks", "_backward_pre_hooks", "_backward_hooks")
    # The type, since a layer that is parametrised keeps its identity.
    of_head = type(head), id(vars(head).get("forward")), shape, hooks
    of_others = [
        (
            id(vars(m).get("forward")),
            foreign_hooks(m, "_forward_hooks"),
            # Some models keep a scale as an attribute. Integers may be counters, which change with every forward.
            {name: x for name, x in vars(m).items() if type(x) is float},
        )
        for m in around
    ]
    numbers = {name: x for name, x in config_values(model).items() if type(x) in (int, float)}
    return of_head, of_others, numbers


_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError)

#: What a model does to its head's output: a transform, None for nothing, or "other" for anything else.
_Found = ScoreTransform | Literal["other"] | None


class TrialRun:
    """A model, or a copy of its modules; tokens, [1 16], none of them special; and options to call the model with."""

    def __init__(self, model: nn.Module) -> None:
        known = config_values(model)
        vocabulary = int(known.get("vocab_size") or outcomes_of(output_embeddings(model)))
        named = [v for k, v in known.items() if k.endswith(("token_id", "token_index"))]
        special = {number for v in named for number in (v if isinstance(v, list) else [v])}
        plain = torch.tensor([k for k in range(min(vocabulary, 4096)) if k not in special] or [0])
        chosen = torch.randint(len(plain), (1, 16), generator=torch.Generator().manual_seed(0))
        self.model, self.tokens = model, plain[chosen].to(next(model.parameters()).device)
        # A cache is memory that is not read here, and recurrent models write into theirs, which autograd rejects.
        # Some models compute something else without one (Dory) and are left as they are.
        usual, uncached = self._outcome({}), self._outcome({"use_cache": False})
        if isinstance(usual, Exception) and isinstance(uncached, Exception):
            raise TypeError(
                f"expected a causal language model that runs on input_ids alone, received {type(model).__name__}, "
                f"which raised {type(usual).__name__}: {usual} Write a HostAdapter of your own for what else it needs."
            ) from usual
        same = isinstance(usual, Exception) or (isinstance(uncached, Tensor) and _close(usual, uncached))
        self.options = {"use_cache": False} if same else {}

    def _outcome(self, options: dict[str, Any]) -> Tensor | Exception:
        self.options = options
        try:
            return logits_of(self())
        except Exception as error:  # whatever a user's model may raise
            return error

    def __call__(self, **inputs: Any) -> Any:
        """The model's output, the same at every call: some models draw random numbers in eval mode too (Reformer)."""
        with _same_random_numbers(self.model):
            return self.model(input_ids=self.tokens, **self.options, **inputs)


def _same_random_numbers(model: nn.Module) -> Any:
    return torch.random.fork_rng(devices={p.device.index for p in model.parameters() if p.is_cuda})


@contextmanager
def trial_run(model: nn.Module) -> Iterator[TrialRun]:
    """Without gradient, in eval mode, of a copy of the model's modules: other threads may run the model meanwhile.

    Where a copy does not do what the model does, the model itself is run.
    """
    with torch.no_grad():
        try:
            trial = TrialRun(shadow_copy(model).eval())
            head = output_embeddings(trial.model)
            for number in foreign_hooks(head, "_forward_hooks"):  # checked in each forward of the host
                del head._forward_hooks[number]
            served = capture(head, trial).called  # by its own head: some wrappers hold on to the original
        except Exception:  # whatever a user's model may raise
            served = False
        if served:
            yield trial
            return
    with evaluating(model):
        yield TrialRun(model)


def logits_of(output: Any) -> Tensor:
    """The logits of a model's output."""
    logits = output.logits if hasattr(output, "logits") else output[0]
    assert isinstance(logits, Tensor)
    return logits


def _close(first: Tensor, second: Tensor) -> bool:
    """Whether logits agree up to rounding."""
    slack = 32 * torch.finfo(first.dtype).eps
    same = first.shape == second.shape
    return same and bool(((first - second).abs() <= slack * (1 + first.abs())).all())


def probe_head(model: nn.Module, trial: TrialRun) -> ModelHead:
    """What the model's head computes: its output is replaced by known numbers, with which the logits are compared."""
    head, tried = output_embeddings(model), output_embeddings(trial.model)
    transform = _transform(trial, tried) if _is_matrix_product(head) else "other"
    output, hidden, *_ = capture(tried, trial)
    if transform == "other" or hidden is None:
        return ModelHead(head, linear=False)
    product = nn.functional.linear(hidden, head.weight, ModelHead(head, True).bias)  # type: ignore[arg-type]
    if not _close(logits_of(output), product if transform is None else transform(product)):
        return ModelHead(head, linear=False)
    try:
        of_one = capture(tried, trial, skip=True).hidden
    except _REFUSALS:
        of_one = None
    skippable = of_one is not None and torch.equal(of_one, hidden)
    return ModelHead(head, linear=True, transform=transform, skippable=skippable)


def _is_matrix_product(head: nn.Module) -> bool:
    """Whether the module is a plain linear layer; a subclass, or a wrapped or sharded one, may be something else.

    A hook before it changes the head's input, which is captured after it, and one after it is checked in each
    forward; one in backward would not be called.
    """
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or type(head).forward is not nn.Linear.forward:
        return False
    wrapped = "forward" in vars(head)  # accelerate's offloading, for one
    hooked = foreign_hooks(head, "_backward_pre_hooks", "_backward_hooks")
    return type(weight.data) is Tensor and not weight.is_meta and not wrapped and not hooked


def _transform(trial: TrialRun, head: nn.Module) -> _Found:
    """What the model does to its head's output; "other", too, if it does not use it."""
    # In float32, for what bfloat16 cannot tell apart; in the head's own precision, for models that insist on it.
    for precise in (True, False):
        ramps: list[Tensor] = []
        thread = threading.get_ident()

        def replace(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Tensor | None:
            if output is None or threading.get_ident() != thread:  # noqa: B023
                return None
            ramps.append(_ramp(output, precise))  # noqa: B023
            return ramps[-1]  # noqa: B023

        handle = add_hook(head.register_forward_hook, replace)
        try:
            logits = logits_of(trial())
        except _REFUSALS:
            continue
        finally:
            handle.remove()
        if len(ramps) != 1 or logits.shape != ramps[0].shape:
            return "other"
        found = _fit(trial.model, ramps[0], logits)
        if found != "other":
            return found
    return "other"


def _ramp(output: Tensor, precise: bool) -> Tensor:
    """Numbers of many sizes and both signs: tiny random models never come near a cap of 30."""
    sizes = torch.logspace(-2, 4, max(output.shape[-1] // 2, 1))
    ramp = torch.cat([-sizes.flip(0), sizes])[: output.shape[-1]]
    ramp = nn.functional.pad(ramp, (0, output.shape[-1] - len(ramp)))
    dtype = torch.promote_types(output.dtype, torch.float32) if precise else output.dtype
    return ramp.to(output.device, dtype).expand(output.shape).clone()


def _fit(model: nn.Module, ramp: Tensor, logits: Tensor) -> _Found:
    z, f = ramp.double(), logits.double()
    eps = max(torch.finfo(logits.dtype).eps, torch.finfo(ramp.dtype).eps) * 8

    def fits(guess: Tensor) -> bool:
        return bool(((f - guess).abs() <= eps * guess.abs() + eps * 1e-2).all())

    if fits(z):
        return None
    top = int(z[0, 0].argmax())
    factor, cap = float(f[0, 0, top] / z[0, 0, top]), float(f[0, 0, top])
    if factor > 0 and fits(factor * z):
        return Scale(_exact(model, factor))
    if cap > 0 and fits(cap * (z / cap).tanh()):
        return SoftCap(_exact(model, cap))
    return "other"


def _exact(model: nn.Module, measured: float) -> float:
    """The number in the configuration that was measured, or whose inverse was."""
    numbers = [v for v in config_values(model).values() if type(v) in (int, float) and v]
    near = [c for v in numbers for c in (float(v), 1.0 / v) if abs(c - measured) <= 0.01 * abs(measured)]
    return min(near, key=lambda c: abs(c - measured), default=measured)


def probe_shift(trial: TrialRun) -> bool:
    """True if the label of a position is the next token, False if it is a label of its own (BART, XLNet).

    The loss is computed for one label alone, at two tokens: the two losses differ by the difference of two logits,
    whatever else a loss consists of (that of a router, say).
    """
    logits = logits_of(trial())[0].float()
    answers = {_is_shifted(trial, logits, at) for at in (5, 10)}
    if len(answers) == 1 and None not in answers:
        return bool(answers.pop())
    raise ValueError(
        "expected a model whose loss is the cross-entropy of next tokens or of labels in place, received "
        f"{type(trial.model).__name__}, whose loss is neither. Pass shifted=True or shifted=False, and labels to match."
    )


def _is_shifted(trial: TrialRun, logits: Tensor, at: int) -> bool | None:
    """Whether this label is compared with the logits before it; None if neither with them nor with its own."""
    known = trial.tokens[0][trial.tokens[0] < logits.shape[1]]
    gap = logits[at - 1, known] - logits[at, known]
    one, other = known[gap.argmax()], known[gap.argmin()]
    losses: list[Tensor] = []
    for token in (one, other):
        labels = torch.full_like(trial.tokens, -100)
        labels[0, at] = token
        try:
            loss = getattr(trial(labels=labels), "loss", None)
        except _REFUSALS:
            return True
        if not isinstance(loss, Tensor):
            return True
        losses.append(loss.float())
    difference = float(losses[1] - losses[0])
    shifted, unshifted = (float(logits[row, one] - logits[row, other]) for row in (at - 1, at))
    errors = abs(difference - shifted), abs(difference - unshifted)
    # Label smoothing takes a little off the difference.
    return None if min(errors) > 0.25 * abs(shifted - unshifted) else errors[0] < errors[1]


def probe_decoder(trial: TrialRun) -> bool:
    """True if the head is given just what the model's decoder returns, with padding and without."""
    mask = torch.ones_like(trial.tokens)
    mask[:, -2:] = 0
    try:
        for inputs in ({}, {"attention_mask": mask}):
            hidden = capture(output_embeddings(trial.model), partial(trial, **inputs)).hidden
            with _same_random_numbers(trial.model):
                decode: Any = trial.model.get_decoder()  # type: ignore[operator]
                states = decode(input_ids=trial.tokens, **trial.options, **inputs)[0]
            # torch.equal compares values alone, whatever their dtypes.
            if hidden is None or states.dtype != hidden.dtype or not torch.equal(states, hidden):
                return False
    except Exception:  # whatever a user's model may raise; states that are not a tensor
        return False
    return True
