"""What a request may ask of vLLM, and which engine a network fits. Imports no vLLM: the front end reads this too."""

from typing import Any

from dro_temp.integrations._served import SWITCH, VARIABLE, RequestBounds, bounds_asked, ours
from dro_temp.predictors import TempNet

# The engines apply some of these before a logits processor, some after: temperatures would be those of other logits.
_CHANGES_LOGITS: dict[str, Any] = {
    "allowed_token_ids": None,
    "bad_words": [],
    "logit_bias": None,
    "min_tokens": 0,
    "structured_outputs": None,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}


def request_bounds(tempnet: TempNet | None, params: Any) -> RequestBounds:
    """The bounds that a request asks for in `extra_args`, within those of the network.

    `{"dro_temp": False}` switches temperatures off, `{"dro_temp_tau_min": 0.5, "dro_temp_tau_max": 1.0}` narrows the
    bounds; temperatures outside them are clipped. Numbers 0 and 1 stand for False and True, since vLLM's server
    passes no truth values.

    Args:
        tempnet: the network, or None for an engine that serves none.
        params: vLLM's `SamplingParams`.

    Raises:
        ValueError: an unknown name, bounds outside the network's or in the wrong order, a request to an engine that
            serves no network or divides in the model, or a parameter that changes logits before they are read.

    Example:
        >>> import dro_temp as dt
        >>> from types import SimpleNamespace
        >>> tempnet = dt.TempNet.for_logits(99, tau_min=0.1, tau_max=2.0)
        >>> request_bounds(tempnet, SimpleNamespace(extra_args={"dro_temp_tau_max": 1.0}))
        RequestBounds(tau_min=0.1, tau_max=1.0)
    """
    asked = ours(getattr(params, "extra_args", None))
    if tempnet is None:
        if asked:
            raise ValueError(
                f"expected an engine that serves a TempNet, received {', '.join(asked)} for one without. Start vLLM "
                f"with {VARIABLE}=folder in its environment, or leave the arguments out."
            )
        return RequestBounds(1.0, 1.0)
    if "features" in tempnet.reads:
        if asked:
            raise ValueError(
                "expected no arguments for a TempNet of hidden states, which divides the logits of all requests in the "
                f"model, received {asked}. Leave them out, or serve a TempNet of logits or statistics."
            )
        return RequestBounds(tempnet.tau_min, tempnet.tau_max)
    bounds = bounds_asked(tempnet, asked)
    changed = [
        k for k, neutral in _CHANGES_LOGITS.items() if getattr(params, k, neutral) not in (neutral, None)
    ]
    if changed and bounds != (1.0, 1.0):
        raise ValueError(
            f"expected logits as the model computes them, received a request with {', '.join(changed)}, which changes "
            f"them before the TempNet reads them, or after. Pass extra_args={{'{SWITCH}': False}} for this request, or "
            "serve a TempNet of hidden states, which is not affected."
        )
    return bounds


def check_engine(tempnet: TempNet, vllm_config: Any) -> None:
    """Raise unless the engine's model is one that the network was made for.

    Raises:
        ValueError: another vocabulary or another width.
    """
    model = vllm_config.model_config
    theirs = model.get_vocab_size(), model.get_hidden_size()
    for name, size, its in zip(("vocabulary", "width"), tempnet.input_sizes, theirs, strict=True):
        if size is not None and size != its:
            made_for = "" if tempnet.made_for is None else f" ({tempnet.made_for.name or 'unnamed'})"
            raise ValueError(
                f"expected a model of {name} {size}, for which the TempNet in {VARIABLE} was made{made_for}, received "
                f"{model.model} of {name} {its}. Serve the model's own TempNet; if its vocabulary was padded since, "
                "train one with the padded model: TempNet.for_lm(model, ...)."
            )
