"""lm-eval's tasks, on a model whose logits are divided by their own temperatures."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dro_temp.hosts.causal_lm import LmHead
from dro_temp.hosts.causal_lm.head import catching
from dro_temp.hosts.causal_lm.probe import probe_head
from dro_temp.interfaces import Support, TemperaturePredictor

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def tempered_lm(model: nn.Module, tokenizer: Any, predictor: TemperaturePredictor, **options: Any) -> "LM":
    """A model for `lm_eval.simple_evaluate(model=...)`, read at its predicted temperatures.

    Log-likelihoods, and so multiple-choice and perplexity tasks, are those of softmax(logits / tau) at every position.

    Args:
        model: a Hugging Face causal language model.
        tokenizer: its tokenizer.
        predictor: the temperatures; `ConstantTemperature(1.0)` gives lm-eval's own numbers.
        **options: what `lm_eval.models.huggingface.HFLM` takes: batch_size, max_length.

    Raises:
        ImportError: lm-eval is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError(
            "expected the package lm-eval, received a Python without it. Run: pip install 'dro-temp[llm]'"
        ) from error
    head = probe_head(model)
    predictor = predictor.eval()

    class TemperedLM(HFLM):  # type: ignore[misc]
        def _model_call(self, *args: Any, **kwargs: Any) -> Tensor:
            with catching(head.module) as caught:
                logits: Tensor = super()._model_call(*args, **kwargs)
            return logits / position_temperatures(predictor, head, caught.once, logits)[..., None]

    return TemperedLM(pretrained=model, tokenizer=tokenizer, **options)


@torch.no_grad()
def position_temperatures(
    predictor: TemperaturePredictor, head: LmHead, hidden: Tensor | None, logits: Tensor
) -> Tensor:
    """Temperature of every position whose logits are at hand, [... ].

    Args:
        predictor: in eval mode.
        head: the model's head.
        hidden: what the head was given, [... d]; needed by predictors of features.
        logits: what the model made of it, [... vocabulary].
    """
    flat = logits.flatten(0, -2)
    tau: Tensor = predictor(
        None if hidden is None else hidden.flatten(0, -2),
        support=Support(flat),
        shape=flat.shape[:1],
    )
    return tau.view(logits.shape[:-1])
