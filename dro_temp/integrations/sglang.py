"""SGLang: a TempNet over logits or statistics as a custom logit processor.

Start the server with `DRO_TEMP_TEMPNET=folder` in its environment and `--enable-custom-logit-processor`, and send each
request with the arguments of `request`.
"""

from typing import Any

from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
from torch import Tensor, tensor

from dro_temp.integrations._served import VARIABLE, bounds_asked, served_tempnet
from dro_temp.predictors import TempNet


class TemperatureLogitProcessor(CustomLogitProcessor):  # type: ignore[misc]
    """Divides each row of logits by its temperature, within the bounds of its request.

    SGLang sends its class, by name, with a request, and makes it on the server, which needs this package. It sees
    logits after SGLang's penalties and `logit_bias`: requests that use them get temperatures of changed logits.

    Raises:
        ValueError: the server has no network, or one of hidden states, which it is not given.
    """

    def __init__(self) -> None:
        tempnet = served_tempnet()
        if tempnet is None:
            raise ValueError(
                f"expected a TempNet, received no {VARIABLE} in the server's environment. Start it with "
                f"{VARIABLE}=folder."
            )
        _check_reads(tempnet)
        self._tempnet = tempnet

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> Tensor:
        """Called with the rows of the requests that ask for it.

        Args:
            logits: [n vocabulary].
            custom_param_list: the `custom_params` of each row's request.
        """
        self._tempnet.to(logits.device)
        bounds = [
            bounds_asked(self._tempnet, params or {}) for params in custom_param_list or [{}] * len(logits)
        ]
        lower, upper = tensor(bounds, device=logits.device).view(-1, 2).unbind(1)
        tau = self._tempnet.temperatures(logits=logits).clamp(lower, upper)
        return logits / tau[:, None]


def request(tempnet: TempNet, **asked: Any) -> dict[str, Any]:
    """Arguments of one request: `engine.generate(prompt, params | r["sampling_params"], custom_logit_processor=...)`.

    They are checked here, since SGLang checks none at admission.

    Args:
        tempnet: the network that the server serves.
        **asked: `dro_temp_tau_min` and `dro_temp_tau_max`, within the bounds of the network.

    Returns:
        `custom_logit_processor`, and `sampling_params` with `custom_params`, to be merged into the request's own.

    Raises:
        ValueError: an unknown name, bounds outside the network's, or a network of hidden states.
    """
    _check_reads(tempnet)
    bounds_asked(tempnet, asked)
    return {
        "custom_logit_processor": TemperatureLogitProcessor.to_str(),
        "sampling_params": {"custom_params": asked},
    }


def _check_reads(tempnet: TempNet) -> None:
    if "features" in tempnet.reads:
        raise ValueError(
            "expected a TempNet of logits or statistics, received one of hidden states, which SGLang does not give to "
            "processors. Train one with TempNet.for_lm(model, inputs='statistics', ...)."
        )
