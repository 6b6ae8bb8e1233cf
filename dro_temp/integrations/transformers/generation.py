"""A predictor's temperatures in `generate`."""

import threading
import weakref
from contextlib import closing, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dro_temp._autograd import outside_graphs
from dro_temp.functional import Scale
from dro_temp.hosts import model_head
from dro_temp.hosts._modules import add_hook, foreign_hooks
from dro_temp.interfaces import Decoder, FrozenHead, ScoreStatistics, TemperaturePredictor
from dro_temp.predictors import TempNet


@dataclass(eq=False)
class _Text:
    """A text since its prompt: the last step's sizes, whether scores are log-probabilities, and its temperatures."""

    seen: tuple[tuple[int, ...], int] = (-1, -1), 0
    normalised: bool = False
    tau: list[Tensor] = field(default_factory=list)

    def continues(self, input_ids: Tensor, positions: int) -> bool:
        """Whether this is the token after the last one, given to the model alone or after all the others."""
        (rows, length), before = self.seen
        return input_ids.shape == (rows, length + 1) and positions in (1, before + 1)


class LastPosition(NamedTuple):
    """Every sequence's last position in one forward."""

    logits: Tensor  #: as the model returned them, soft-capped or scaled, [n vocabulary]
    hidden: Tensor | None  #: the head's input, [n d]; None if it was not called once, position by position
    positions: int  #: number of positions that the model was given
    by_generate: bool  #: whether a dictionary was asked for, as `generate` does in all forwards of its own


class _Captured:
    """What the forwards of one thread left."""

    last: LastPosition | None = None
    hidden: Tensor | None = None
    head_calls = 0


class _PerThread(threading.local):
    """Several threads may run one model, each with a text of its own; copies and pickles start empty."""

    text: _Text | None = None

    def __init__(self) -> None:
        self.captured = _Captured()

    def __reduce__(self) -> tuple[Any, ...]:
        return _PerThread, ()


class HiddenHook:
    """Hooks on a model and its head that hold the last position of a thread's latest forward until it is taken.

    Forwards that record gradients are ignored, so that training is neither slowed nor remembered. The model is not
    kept alive, and of a longer sequence one position alone. It may be wrapped (PEFT), or wrap the one that generates.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        self._threads = _PerThread()
        # After the head, not before it: hooks that change what it is given may be put there later.
        self._handles = [add_hook(head.register_forward_hook, self._after_head)]
        self._after_ids: dict[int, int] = {}  # ids of the hooks after a model, by the module's
        # A wrapper may call what it wraps, its forward without hooks, or have it generate: each gets hooks.
        for module in model.modules():
            if module is model or getattr(module, "get_output_embeddings", lambda: None)() is head:
                after = add_hook(module.register_forward_hook, self._after_model)
                self._after_ids[id(module)] = after.id
                self._handles += [add_hook(module.register_forward_pre_hook, self._before_model), after]

    def take(self) -> LastPosition | None:
        """This thread's latest forward's last position, once; None if there was no forward since."""
        captured = self._captured()
        last, captured.last = captured.last, None
        return last

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._threads = _PerThread()

    @outside_graphs  # the compiler does not know whose attributes these are, and would lose what is written to them
    def _captured(self) -> _Captured:
        return self._threads.captured

    def _before_model(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if kwargs is not None and "logits_processor_args" in kwargs:
            raise ValueError(
                "expected model.generate, received a forward of continuous batching (generate_batch), which calls no "
                "TemperatureLogitsProcessor. Call model.generate(..., logits_processor=[processor]); for texts "
                "without its temperatures, call processor.close() first."
            )
        captured = self._captured()
        captured.hidden, captured.head_calls = None, 0
        if not torch.compiler.is_compiling():
            # Hooks that change the logits may be put on the model later: ours goes behind them.
            own, others = self._after_ids.get(id(module)), foreign_hooks(module, "_forward_hooks")
            order = list(module._forward_hooks)  # in one step: other threads add and remove theirs
            if own in order and others and others[-1] in order[order.index(own) :]:
                with suppress(KeyError):  # closed by another thread meanwhile
                    module._forward_hooks.move_to_end(own)  # type: ignore[attr-defined]

    def _after_head(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if output is None or torch.is_grad_enabled():
            return
        captured = self._captured()
        captured.head_calls += 1
        captured.hidden = _last_of(args[0] if args else next(iter(kwargs.values())))

    def _after_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        logits = None if torch.is_grad_enabled() else _last_of(getattr(output, "logits", None))
        if logits is None:
            return
        captured = self._captured()
        by_generate = kwargs.get("return_dict") is True
        # Guidance runs the model again, for its own purposes, before a step's scores reach the processor.
        if captured.last is not None and captured.last.by_generate and not by_generate:
            return
        hidden = captured.hidden if captured.head_calls == 1 else None
        if hidden is not None and len(hidden) != len(logits):
            hidden = None
        inputs = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        positions = next((x.shape[1] for x in inputs if isinstance(x, Tensor)), 0)
        captured.last = LastPosition(logits, hidden, positions, by_generate)


class TemperatureLogitsProcessor:
    r"""Divides each row's scores by the temperature that a predictor gives its token.

    Temperatures are predicted from what the predictor was trained on, the model's own logits and its head's input,
    both captured in the model's forward. The scores that `generate` passes have been changed since: penalised, partly
    $-\infty$, or log-probabilities. Logits $s$ are returned as $s/\tau$, log-probabilities as
    $\log\mathrm{softmax}(s/\tau)$, so that a beam's scores remain log-probabilities. The user's own `temperature`
    multiplies.

    It works for greedy decoding, sampling, beams, guidance, chunked prompts and any cache. Create it once and
    reuse it: the constructor examines the head and prepares what it can. Its hooks are removed when it is deleted, on
    `close()`, or at the end of a `with` block. Several threads may generate at once, with one processor or several.

    Args:
        model: the causal language model that will generate.
        tempnet: predictor of temperatures, in eval mode.

    Raises:
        TypeError: the model has no head.
        ValueError: the predictor is for another vocabulary or width, in training mode (if that makes a difference), or
            reads sample numbers; later, where positions are not generated one by one (assisted decoding), and
            where the vocabulary was resized.

    Example:
        >>> import torch, dro_temp as dt, transformers
        >>> config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
        >>> model = transformers.GPT2LMHeadModel(config)
        >>> tempnet = dt.TempNet.for_logits(99, tau_min=0.1, tau_max=2.0).eval()
        >>> processor = dt.TemperatureLogitsProcessor(model, tempnet)
        >>> sampling = {"do_sample": True, "max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None}
        >>> text = model.generate(torch.ones(2, 3, dtype=torch.long), logits_processor=[processor], **sampling)
        >>> text.shape, processor.temperatures.shape
        (torch.Size([2, 8]), torch.Size([2, 5]))
    """

    #: Read by transformers: there, rows of several texts share one forward.
    supports_continuous_batching = False

    def __init__(self, model: nn.Module, tempnet: TemperaturePredictor) -> None:
        head = model_head.output_embeddings(model)
        if isinstance(tempnet, TempNet):
            tempnet.check_fits(model)
        with closing(HiddenHook(model, head)) as hook:
            self._temperatures_of = HeadTemperatures(model, tempnet)
            example = hook.take()
        if example is None:
            raise TypeError(
                f"expected a model that returns logits of shape [batch, length, vocabulary], received "
                f"{type(model).__name__}. Load it with AutoModelForCausalLM."
            )
        self._temperatures_of(example.hidden, example.logits)  # another width is an error here, not in a text
        self._name = type(model).__name__
        self._model, self._head = weakref.ref(model), head
        self._outcomes = example.logits.shape[1]
        self._hook = HiddenHook(model, head)
        # The model refers to the hook, which refers to neither model nor processor: all go with the last reference.
        self._close = weakref.finalize(self, self._hook.close)
        self._own = _PerThread()
        self._latest = _Text()  # of any thread

    def __enter__(self) -> "TemperatureLogitsProcessor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        r"""Called by `generate` for every token.

        Args:
            input_ids: [n length] tokens so far.
            scores: [n vocabulary] logits or log-probabilities, as other processors left them.

        Returns:
            [n vocabulary], of the kind that scores are; $-\infty$ stays.
        """
        last = self._hook.take()
        if last is None or len(last.logits) != len(scores):
            raise self._refusal(last, scores)
        text = self._own.text
        if text is None or not text.continues(input_ids, last.positions):
            self._check_head()
            self._temperatures_of.refresh()
            text = self._own.text = self._latest = _Text(normalised=not _are_logits(scores, last.logits))
        text.seen = input_ids.shape, last.positions
        tau = self._temperatures_of(last.hidden, last.logits).to(scores.device)
        text.tau.append(tau)
        tempered = scores / tau.unsqueeze(1)
        return tempered.log_softmax(1) if text.normalised else tempered

    @property
    def temperatures(self) -> Tensor:
        """[n steps], of the tokens generated since the last prompt.

        Each thread reads those of its own text; one that has generated none, those of the text begun last by any
        thread. Under beam search a row is a beam at that step, and `beam_indices` says which one a text went through.
        Temperatures of rows that have ended are undefined.
        """
        text = self._own.text or self._latest
        return torch.stack(text.tau, dim=1) if text.tau else torch.empty(0, 0)

    def reset(self) -> None:
        """Forget the temperatures so far, as each new prompt does."""
        if self._own.text is None or self._own.text is self._latest:
            self._latest = _Text()
        self._own.text = None

    def close(self) -> None:
        """Remove the hooks from the model; the temperatures stay."""
        self._close()

    def _check_head(self) -> None:
        """Raise where the model has another head, or another vocabulary, than when the hooks were put on it."""
        model = self._model()
        if model is None:
            return
        head = model_head.output_embeddings(model)
        outcomes = model_head.outcomes_of(head)
        if head is not self._head or outcomes != self._outcomes:
            raise ValueError(
                f"expected the head of {self._name} that the processor was made for, with {self._outcomes} outcomes, "
                f"received another one, with {outcomes}: the vocabulary was resized, or adapters were added. Make "
                "another: TemperatureLogitsProcessor(model, tempnet)."
            )

    def _refusal(self, last: LastPosition | None, scores: Tensor) -> ValueError:
        if not self._close.alive:
            return ValueError(
                "expected a processor whose hooks are on the model, received one that was closed. Make another: "
                "TemperatureLogitsProcessor(model, tempnet)."
            )
        self._check_head()
        received = "none since the last call" if last is None else f"one of {len(last.logits)} rows"
        return ValueError(
            f"expected a forward of {self._name} for each token, of {len(scores)} rows and without gradient, received "
            f"{received}. Assisted decoding verifies several positions of one forward, which have a temperature each: "
            "call generate without assistant_model and prompt_lookup_num_tokens. Otherwise: call the model that the "
            "processor was made for, with GenerationConfig(disable_compile=True) if generate compiles it."
        )


def _last_of(x: Any) -> Tensor | None:
    """[n k] of [n positions k], without keeping the other positions."""
    if not isinstance(x, Tensor) or x.dim() != 3:
        return None
    last = x.select(1, -1)
    return last if x.shape[1] == 1 else last.clone()


def _are_logits(scores: Tensor, logits: Tensor) -> bool:
    """Whether scores are the model's logits, apart from what other processors have changed.

    The largest decides: that of log-probabilities differs, unless the logits are such themselves. If a processor has
    changed it, log-probabilities are returned, which leave sampling, argmax and later filters as they are.
    """
    top = logits.argmax(1, keepdim=True)
    highest = scores.gather(1, top.to(scores.device))
    same = torch.equal(highest, logits.gather(1, top).to(highest))
    log_sum = logits.float().logsumexp(1)
    return same and not torch.allclose(log_sum, torch.zeros_like(log_sum), atol=0.05)


class HeadTemperatures:
    """A predictor bound to a model's head; how heads are named in this library, see `hosts.model_head`.

    What can be prepared is prepared once, and again after a weight has changed. The model is not kept alive.
    """

    #: As last examined.
    head: model_head.ModelHead

    def __init__(self, model: nn.Module, predictor: TemperaturePredictor) -> None:
        self._model, self._predictor = weakref.ref(model), predictor
        self._snapshot: model_head.HeadSnapshot | None = None
        self.refresh()

    def refresh(self) -> None:
        """Prepare again if anything has changed; not needed between the tokens of one text."""
        model = self._model()
        if model is not None and (self._snapshot is None or self._snapshot.is_outdated(model)):
            snapshot = model_head.HeadSnapshot(model)
            with model_head.trial_run(model) as trial:
                head = model_head.probe_head(model, trial)
            self.head, self._prepared_for = head, list[object]()
            # Last: an interrupted or a concurrent refresh must find that all of it is still to be done.
            self._snapshot = snapshot
        # Read first: a weight that changes meanwhile is then noticed the next time.
        versions = self._versions()
        if versions != self._prepared_for:
            self._decode = _decoder(self.head, self._predictor)
            self._prepared_for = versions

    def __call__(self, hidden: Tensor | None, logits: Tensor) -> Tensor:
        """Temperatures, [n], from what the head was given, [n d], and what the model returned, [n vocabulary]."""
        return self._decode(hidden, logits)  # type: ignore[arg-type]  # a predictor of features raises by itself

    def _versions(self) -> list[object]:
        weights = [*self._predictor.parameters(), *self._predictor.buffers()]
        if self.head.linear:
            weights += [x for x in (self.head.weight, self.head.bias) if x is not None]
        versions = [-1 if torch.is_inference(x) else x._version for x in weights]
        where = [(x.data_ptr(), x.dtype, x.device) for x in weights]
        modes = [part.training for part in self._predictor.modules()]
        return [modes, foreign_hooks(self.head.module, "_forward_hooks"), versions, where]


def _decoder(head: model_head.ModelHead, predictor: TemperaturePredictor) -> Decoder:
    transform = head.transform
    hooked = foreign_hooks(head.module, "_forward_hooks")  # which may change logits at times
    if head.linear and not hooked:
        if transform is None:
            return predictor.decoder(FrozenHead(head.weight, head.bias))
        if isinstance(transform, Scale) and "features" not in predictor.reads:
            # a (W h + c) = W (a h) + a c: logits of a head without a scale.
            factor, bias = transform.factor, head.bias
            scaled = predictor.decoder(FrozenHead(head.weight, None if bias is None else bias * factor))
            return lambda hidden, logits: scaled(hidden * factor, logits)
    # Nothing can be prepared: the predictor reads the model's logits.
    logits_alone = SimpleNamespace(statistics=lambda queries, scores: ScoreStatistics(scores))
    return TemperaturePredictor.decoder(predictor, cast(FrozenHead, logits_alone))
