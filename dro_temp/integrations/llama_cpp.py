"""llama-cpp-python: a TempNet over logits or statistics as its `logits_processor`."""

from typing import TYPE_CHECKING, Any

import torch

from dro_temp.interfaces import TemperaturePredictor

if TYPE_CHECKING:
    import numpy as np


class LlamaTemperatureProcessor:
    r"""Divides the logits of each token by the temperature that a predictor gives it.

    llama-cpp-python calls it before penalties and the request's own temperature, with the model's own logits. It has no
    hidden states, so the predictor must read logits or statistics. Its `logit_bias` argument drops every processor
    (version 0.3.36): do not use both.

    Args:
        llama: the `llama_cpp.Llama` that will generate, whose vocabulary is compared with the predictor's.
        predictor: a TempNet or an entropy rule, in eval mode, on the CPU.

    Raises:
        ValueError: another vocabulary, a predictor of hidden states, or one in training mode.

    Example:
        >>> import numpy as np, dro_temp as dt
        >>> from types import SimpleNamespace
        >>> llama = SimpleNamespace(n_vocab=lambda: 99)  # llama_cpp.Llama("model.gguf")
        >>> tempnet = dt.TempNet.for_logits(99, tau_min=0.1, tau_max=2.0).eval()
        >>> processor = LlamaTemperatureProcessor(llama, tempnet)
        >>> processor(np.array([1, 2]), np.zeros(99, dtype=np.float32)).shape
        (99,)
        >>> len(processor.temperatures)  # llama(prompt, logits_processor=[processor]) adds one per token
        1
    """

    def __init__(self, llama: Any, predictor: TemperaturePredictor) -> None:
        self.predictor = predictor
        #: Of the tokens so far; clear it before a new text.
        self.temperatures: list[float] = []
        predictor.temperatures(logits=torch.zeros(1, llama.n_vocab()))  # what does not fit is an error here

    def __call__(
        self, input_ids: "np.ndarray[Any, Any]", scores: "np.ndarray[Any, Any]"
    ) -> "np.ndarray[Any, Any]":
        """Called for every token.

        Args:
            input_ids: [length] tokens so far.
            scores: [vocabulary] logits.

        Returns:
            [vocabulary], scores over the temperature.
        """
        tau = float(self.predictor.temperatures(logits=torch.tensor(scores)))
        self.temperatures.append(tau)
        return scores / tau
