"""lm-eval's tasks on a model whose logits are divided by predicted temperatures."""

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dro_temp._optional import optional_module
from dro_temp.hosts.model_head import capture
from dro_temp.integrations.transformers.generation import HeadTemperatures
from dro_temp.interfaces import TemperaturePredictor

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def tempered_lm(model: nn.Module, tokenizer: Any, predictor: TemperaturePredictor, **options: Any) -> "LM":
    """A model for `lm_eval.simple_evaluate(model=...)`, evaluated at its predicted temperatures.

    Log-likelihoods, and so multiple-choice and perplexity tasks, are those of softmax(logits / tau) at every position.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer.
        predictor: the temperatures; `ConstantTemperature(1.0)` gives lm-eval's own numbers.
        **options: what `lm_eval.models.huggingface.HFLM` takes: batch_size, max_length.

    Raises:
        ImportError: lm-eval is not installed.
    """
    base: Any = optional_module("lm_eval.models.huggingface", "whose tasks are to be run").HFLM
    temperatures = HeadTemperatures(model, predictor.eval())

    class TemperedLM(base):
        def _model_call(self, *args: Any, **kwargs: Any) -> Tensor:
            temperatures.refresh()
            run = partial(super()._model_call, *args, **kwargs)
            logits, hidden, *_ = capture(temperatures.head.module, run)
            tau = temperatures(None if hidden is None else hidden.flatten(0, -2), logits.flatten(0, -2))
            tempered: Tensor = logits / tau.view(*logits.shape[:-1], 1)
            return tempered

    return TemperedLM(pretrained=model, tokenizer=tokenizer, **options)
