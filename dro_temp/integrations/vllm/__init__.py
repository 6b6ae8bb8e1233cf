"""A TempNet in vLLM: set `DRO_TEMP_TEMPNET` to its folder, and the engine divides logits by its temperatures.

vLLM finds the plugins by entry points when it starts; nothing is imported from here, and without the variable they do
nothing. A network of logits or statistics works as a logits processor, one of hidden states in the model's own
`compute_logits`.
"""

from dro_temp.integrations._served import RequestBounds, served_tempnet
from dro_temp.integrations.vllm.requests import request_bounds

__all__ = ["RequestBounds", "request_bounds", "served_tempnet"]
