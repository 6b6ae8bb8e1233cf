"""Model classes of vLLM whose `compute_logits` divides by a TempNet's temperatures; no model is copied or patched.

`register`, the entry point `vllm.general_plugins`, runs in each of vLLM's processes. If `DRO_TEMP_TEMPNET` is set, it
registers a subclass of every architecture under the architecture's own name, made when vLLM asks for it. vLLM then
builds and loads the subclass like any other model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from dro_temp.integrations._served import VARIABLE, served_tempnet
from dro_temp.integrations.vllm.requests import check_engine
from dro_temp.predictors import TempNet

_originals: dict[str, Any] = {}  # by architecture, as vLLM registered them
_classes: dict[str, type] = {}
_building: ContextVar[bool] = ContextVar("building", default=False)


def register() -> None:
    """Register the subclasses, once; without `DRO_TEMP_TEMPNET` nothing is registered.

    Raises:
        FileNotFoundError, OSError, ValueError: the variable names no intact TempNet.
    """
    if served_tempnet() is None:
        return
    from vllm import ModelRegistry

    for architecture, original in list(ModelRegistry.models.items()):
        if architecture not in _originals:
            _originals[architecture] = original
            ModelRegistry.register_model(architecture, f"{__name__}:{architecture}")


def __getattr__(architecture: str) -> type:
    """The subclass of an architecture's class."""
    if architecture not in _originals:
        raise AttributeError(f"module {__name__!r} has no attribute {architecture!r}")
    if architecture not in _classes:
        _classes[architecture] = dividing(_originals[architecture].load_model_cls())
    return _classes[architecture]


def check_divides(vllm_config: Any) -> None:
    """Raise unless the engine's model is one of the subclasses, as a network of hidden states needs."""
    if not set(vllm_config.model_config.architectures) & set(_originals):
        raise ValueError(
            f"expected a model that divides its own logits, for the TempNet of hidden states in {VARIABLE}: a logits "
            f"processor is not given them. Received {vllm_config.model_config.architectures} without the plugin. Add "
            "dro_temp to VLLM_PLUGINS, which leaves it out, or serve a TempNet of logits or statistics."
        )


def dividing(model_class: type) -> type:
    """A subclass that divides its logits if the served TempNet reads hidden states.

    Of nested models (a language model inside one of images and text) the outermost divides, and the model that
    drafts for speculative decoding does not: what is accepted is decided by the logits of the other.

    Raises:
        ValueError: when a model is made: the network is for another model; or it reads logits or statistics, and V1
            decodes speculatively, where it would call no logits processor; or sampling is sharded over the batch.
    """
    if not callable(getattr(model_class, "compute_logits", None)):
        return model_class

    class Dividing(model_class):  # type: ignore[misc, valid-type]
        def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
            with _outermost() as outermost:
                super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
            drafts = vllm_config.model_config.runner_type == "draft"
            tempnet = served_tempnet() if outermost and not drafts else None
            if tempnet is not None:
                check_engine(tempnet, vllm_config)
                _check_rows(tempnet, vllm_config)
            # Not a submodule: its weights are not among those that vLLM loads.
            divides = tempnet is not None and "features" in tempnet.reads
            self.__dict__["_served_tempnet"] = tempnet if divides else None

        def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
            logits: Tensor | None = super().compute_logits(hidden_states, *args, **kwargs)
            tempnet = self.__dict__["_served_tempnet"]
            if tempnet is None or logits is None:
                return logits
            tempnet.to(hidden_states.device)
            read = logits if tempnet.reads_scores else None
            tau = tempnet.temperatures(read, hidden_states)
            divided: Tensor = logits.float() / tau[..., None]
            return divided

    Dividing.__name__ = Dividing.__qualname__ = model_class.__name__
    Dividing.__doc__ = model_class.__doc__
    return Dividing


def _check_rows(tempnet: TempNet, vllm_config: Any) -> None:
    """Raise where logits would reach the sampler without having been divided."""
    if "features" not in tempnet.reads:
        if vllm_config.speculative_config is not None and not vllm_config.use_v2_model_runner:
            raise ValueError(
                f"expected no speculative decoding for the TempNet in {VARIABLE}, which reads logits alone, "
                "received a speculative_config, with which vLLM's engine V1 calls no logits processor. Leave it out, "
                "or serve a TempNet of hidden states, which divides in the model."
            )
    elif vllm_config.parallel_config.enable_batch_sharded_sampling:
        raise ValueError(
            f"expected whole rows of logits for the TempNet of hidden states in {VARIABLE}, received "
            "enable_batch_sharded_sampling. Leave that out."
        )


@contextmanager
def _outermost() -> Iterator[bool]:
    """Yields whether no other model is being built around this one."""
    inside = _building.get()
    token = _building.set(True)
    try:
        yield not inside
    finally:
        _building.reset(token)
