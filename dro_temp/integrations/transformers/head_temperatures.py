"""Temperatures of the few rows that a language model's head makes in generation, as training would predict them."""

import weakref
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor, nn

from dro_temp.functional import Scale
from dro_temp.hosts._modules import foreign_hooks
from dro_temp.hosts.causal_lm.model_head import HeadSnapshot, ModelHead
from dro_temp.hosts.causal_lm.trial_runs import probe_head, trial_run
from dro_temp.interfaces import Decoder, FrozenHead, ScoreStatistics, TemperaturePredictor


class HeadTemperatures:
    """A predictor bound to a model's head; how heads are named in this library, see `hosts.causal_lm.model_head`.

    What can be prepared is prepared once, and again after a weight has changed. The model is not kept alive.
    """

    #: As last examined.
    head: ModelHead

    def __init__(self, model: nn.Module, predictor: TemperaturePredictor) -> None:
        self._model, self._predictor = weakref.ref(model), predictor
        self._snapshot: HeadSnapshot | None = None
        self.refresh()

    def refresh(self) -> None:
        """Prepare again if anything has changed; not needed between the tokens of one text."""
        model = self._model()
        if model is not None and (self._snapshot is None or self._snapshot.is_outdated(model)):
            snapshot = HeadSnapshot(model)
            with trial_run(model) as trial:
                head = probe_head(model, trial)
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


def _decoder(head: ModelHead, predictor: TemperaturePredictor) -> Decoder:
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
