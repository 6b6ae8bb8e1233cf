"""Temperatures of what a language model's head makes of few rows, as training would have predicted them."""

from typing import cast

import torch
from torch import Tensor

from dro_temp.functional import Scale
from dro_temp.hosts.causal_lm import LmHead
from dro_temp.interfaces import Decoder, FrozenHead, Summary, TemperaturePredictor


class HeadTemperatures:
    """A predictor bound to a head: what can be prepared is prepared once, and again when a weight has moved.

    Args:
        head: the head.
        predictor: whose temperatures.

    Raises:
        ValueError: the predictor is in training mode, or knows samples by their numbers.
    """

    def __init__(self, head: LmHead, predictor: TemperaturePredictor) -> None:
        self._head, self._predictor = head, predictor
        self._state: list[object] = []
        self.refresh()

    def refresh(self) -> None:
        """Prepare again, if anything has changed; not needed between the tokens of one text."""
        weights = [*self._predictor.parameters(), *self._predictor.buffers(), self._head.weight]
        weights += [] if self._head.bias is None else [self._head.bias]
        state = [self._predictor.training, *map(_state, weights)]
        if state != self._state:
            self._decode = _decoder(self._head, self._predictor)
            self._state = state

    def __call__(self, hidden: Tensor | None, logits: Tensor) -> Tensor:
        """Temperatures, [n].

        Args:
            hidden: what the head was given, [n d].
            logits: what the model returned, [n vocabulary].
        """
        return self._decode(hidden, logits)  # type: ignore[arg-type]  # a predictor of features says so itself


class _LogitsAlone:
    """Stands for a head of which nothing can be prepared: a predictor reads the logits that it came to."""

    def summary(self, queries: Tensor | None, scores: Tensor) -> Summary:
        """Of the logits."""
        return Summary(scores)


def _decoder(head: LmHead, predictor: TemperaturePredictor) -> Decoder:
    transform, reads_hidden = head.transform, "features" in predictor.reads
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
