"""A logits processor for both of vLLM's engines; vLLM imports this file by its entry point `vllm.logits_processors`."""

from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from dro_temp.integrations._served import VARIABLE, RequestBounds, served_tempnet
from dro_temp.integrations.vllm import models
from dro_temp.integrations.vllm.requests import check_engine, request_bounds

_GROUP = "vllm.logits_processors"
_OFF = RequestBounds(1.0, 1.0)


class TemperatureProcessor(LogitsProcessorV2, LogitsProcessor):  # type: ignore[misc]
    """Divides each row of logits by its temperature, within the bounds of its request.

    One class serves both engines, since one entry point does: V1 calls `update_state(batch_update)` and
    `apply(logits)`, where a row is a request; V2 calls `add_request`, `apply_staged_writes` and `apply(logits, ctx)`,
    where a request has a slot, and the context says which slot a row belongs to. Without the variable
    `DRO_TEMP_TEMPNET`, and for a network of hidden states (which divides in the model), it leaves logits alone.

    Raises:
        ValueError: the network is for another vocabulary or width, or reads hidden states which the engine's model
            does not pass on; the class is installed as a plugin and given to the engine once more.
    """

    def __init__(self, vllm_config: Any, state: Any, is_pin_memory: bool | None = None) -> None:
        # V1 passes a device and whether memory is pinned, V2 the state of its requests.
        self._tempnet = served_tempnet()
        if self._tempnet is None:
            return
        _refuse_twice(vllm_config)
        check_engine(self._tempnet, vllm_config)
        if "features" in self._tempnet.reads:
            models.check_divides(vllm_config)
            self._tempnet = None
            return
        v2 = is_pin_memory is None
        self._device = state.device if v2 else state
        self._tempnet.to(self._device)
        self._of_request: dict[int, RequestBounds] = {}  # V1: by row; V2: by slot
        self._bounds = torch.ones(state.max_num_reqs if v2 else 0, 2, device=self._device)
        # On the host: reading it waits for no device.
        self._divides = torch.zeros(len(self._bounds), dtype=torch.bool)
        self._changed = False

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise ValueError for a request with bad `extra_args`, when it is admitted; see `request_bounds`."""
        request_bounds(served_tempnet(), sampling_params)

    def is_argmax_invariant(self) -> bool:
        """False, although no temperature changes an argmax: V1 passes logits before temperature to these alone."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: requests have joined, left or moved."""
        if self._tempnet is None or batch_update is None:
            return
        process_dict_updates(self._of_request, batch_update, lambda params, *_: self._bounds_of(params))
        rows = range(batch_update.batch_size)
        bounds = [self._of_request.get(row, _OFF) for row in rows]
        self._bounds = torch.tensor(bounds, device=self._device).view(-1, 2)
        self._divides = torch.tensor([one != _OFF for one in bounds], dtype=torch.bool)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request takes a slot. Returns whether its logits will be changed."""
        if self._tempnet is None:
            return False
        bounds = self._bounds_of(sampling_params)
        self._of_request[req_idx] = bounds
        self._changed = True
        self._divides[req_idx] = bounds != _OFF
        return bounds != _OFF

    def apply_staged_writes(self) -> None:
        """V2: once per step, before the forward."""
        if self._tempnet is None or not self._changed:
            return
        slots = torch.tensor(list(self._of_request), device=self._device)
        self._bounds[slots] = torch.tensor(list(self._of_request.values()), device=self._device)
        self._of_request.clear()
        self._changed = False

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Divide in place.

        Args:
            logits: [n vocabulary], float32.
            ctx: V2: the layout of the batch.
        """
        if self._tempnet is None or len(logits) == 0:
            return logits
        bounds = self._bounds if ctx is None else self._bounds[ctx.expanded_idx_mapping]
        if len(bounds) != len(logits):
            raise RuntimeError(
                f"expected one row of logits for each of {len(bounds)} requests, received {len(logits)} rows. Switch "
                f"speculative decoding off, or serve without {VARIABLE}."
            )
        divides = self._divides if ctx is None else self._divides[torch.as_tensor(ctx.idx_mapping_np).long()]
        if not divides.any():
            return logits
        lower, upper = bounds.unbind(1)
        tau = self._tempnet.temperatures(logits=logits).clamp(lower, upper)
        return logits.div_(tau[:, None])

    def _bounds_of(self, params: Any) -> RequestBounds:
        return request_bounds(self._tempnet, params)


def _refuse_twice(vllm_config: Any) -> None:
    """Raise if the class is both installed as a plugin and given to the engine: logits would be divided twice."""
    name = f"{TemperatureProcessor.__module__}:{TemperatureProcessor.__qualname__}"
    given = vllm_config.model_config.logits_processors or ()
    installed = any(plugin.value == name for plugin in entry_points(group=_GROUP))
    if (installed + sum(x in (name, TemperatureProcessor) for x in given)) > 1:
        raise ValueError(
            f"expected {name} once, received it as an installed plugin and in logits_processors=...: logits would be "
            "divided twice. Leave it out of logits_processors."
        )
