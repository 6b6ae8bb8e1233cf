"""Temperatures of what a language model's head makes of few rows, as training would have predicted them."""

import weakref
from typing import cast

import torch
from torch import Tensor, nn

from dro_temp.functional import Scale
from dro_temp.hosts._hooks import hooks_of_others
from dro_temp.hosts.causal_lm import LmHead
from dro_temp.hosts.causal_lm.circumstances import Circumstances
from dro_temp.hosts.causal_lm.probe import probe_head
from dro_temp.interfaces import Decoder, FrozenHead, ScoreStatistics, TemperaturePredictor


class HeadTemperatures:
    """A predictor bound to a model's head: what can be prepared is prepared once, and again when a weight has moved.

    The model is not kept alive.

    Args:
        model: the model.
        predictor: whose temperatures.

    Raises:
        TypeError: the model has no head.
        ValueError: the predictor is in training mode, or knows samples by their numbers.
    """

    def __init__(self, model: nn.Module, predictor: TemperaturePredictor) -> None:
        self._model, self._predictor = weakref.ref(model), predictor
        self._prepare(model)

    @property
    def head(self) -> LmHead:
        """The head, as it was found when it was last looked at."""
        return self._head

    def refresh(self) -> None:
        """Prepare again, if anything has changed; not needed between the tokens of one text."""
        model = self._model()
        if model is not None and self._circumstances.changed(model):
            self._prepare(model)
        elif self._weights() != self._state:
            self._fold()

    def _prepare(self, model: nn.Module) -> None:
        self._circumstances, self._head = Circumstances(model), probe_head(model)
        self._fold()

    def _fold(self) -> None:
        # First of all: a weight that moves meanwhile is then noticed the next time.
        state = self._weights()
        self._decode = _decoder(self._head, self._predictor)
        self._state = state

    def _weights(self) -> list[object]:
        weights = [*self._predictor.parameters(), *self._predictor.buffers()]
        if self._head.linear:
            weights += [self._head.weight] + ([] if self._head.bias is None else [self._head.bias])
        modes = [part.training for part in self._predictor.modules()]
        return [modes, hooks_of_others(self._head.module, "_forward_hooks"), *map(_state, weights)]

    def __call__(self, hidden: Tensor | None, logits: Tensor) -> Tensor:
        """Temperatures, [n].

        Args:
            hidden: what the head was given, [n d].
            logits: what the model returned, [n vocabulary].
        """
        return self._decode(hidden, logits)  # type: ignore[arg-type]  # a predictor of features says so itself


class _LogitsAlone:
    """Stands for a head of which nothing can be prepared: a predictor reads the logits that it came to."""

    def statistics(self, queries: Tensor | None, scores: Tensor) -> ScoreStatistics:
        """Of the logits."""
        return ScoreStatistics(scores)


def _decoder(head: LmHead, predictor: TemperaturePredictor) -> Decoder:
    transform, reads_hidden = head.transform, "features" in predictor.reads
    if hooks_of_others(head.module, "_forward_hooks"):  # which may change logits now and then
        return TemperaturePredictor.decoder(predictor, cast(FrozenHead, _LogitsAlone()))
    if head.linear and transform is None:
        return predictor.decoder(FrozenHead(head.weight, head.bias))
    if head.linear and isinstance(transform, Scale) and not reads_hidden:
        # a (W h + c) = W (a h) + a c: logits of a head without a scale.
        factor = transform.factor
        scaled = predictor.decoder(FrozenHead(head.weight, None if head.bias is None else head.bias * factor))
        return lambda hidden, logits: scaled(hidden * factor, logits)
    return TemperaturePredictor.decoder(predictor, cast(FrozenHead, _LogitsAlone()))


def _state(weight: Tensor) -> tuple[object, ...]:
    version = -1 if torch.is_inference(weight) else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.device
