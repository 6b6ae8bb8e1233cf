"""On what the answers of a probe depend: looked at before each forward, and probed again where it has changed."""

import weakref
from typing import Any

from torch import Tensor, nn

from dro_temp.hosts._hooks import hooks_of_others
from dro_temp.hosts.causal_lm.examples import numbers_of
from dro_temp.hosts.causal_lm.head import output_embeddings


class Circumstances:
    """The head of a model, what was put around it, and the numbers that may go into its logits.

    Args:
        model: the model, as it is now.

    Example:
        >>> import transformers
        >>> config = transformers.GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2)
        >>> model = transformers.GPT2LMHeadModel(config)
        >>> before = Circumstances(model)
        >>> model.config.logit_scale = 2.0
        >>> before.changed(model)
        True
    """

    def __init__(self, model: nn.Module) -> None:
        head = output_embeddings(model)
        modules = head, *(part for part in model.modules() if part is not head and _holds(part, head))
        self._modules = tuple(map(weakref.ref, modules))
        self._state = _state(model, modules)

    def changed(self, model: nn.Module) -> bool:
        """Whether a probe might find something else now."""
        modules = tuple(part for part in (of() for of in self._modules) if part is not None)
        if len(modules) < len(self._modules) or output_embeddings(model) is not modules[0]:
            return True
        return _state(model, modules) != self._state

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles belong to another model: they know nothing of it yet."""
        return {"_modules": (_gone,), "_state": ()}


def _gone() -> None:
    """A reference to nothing."""


def _holds(part: nn.Module, head: nn.Module) -> bool:
    return any(inner is head for inner in part.modules())


def _state(model: nn.Module, modules: tuple[nn.Module, ...]) -> tuple[Any, ...]:
    head, *around = modules
    weight = getattr(head, "weight", None)
    shape = (weight.shape, weight.dtype) if isinstance(weight, Tensor) else type(weight)
    # A layer that is parametrised changes its type, and keeps its identity.
    # Hooks behind the head are watched in each forward.
    hooks = hooks_of_others(head, "_forward_pre_hooks", "_backward_pre_hooks", "_backward_hooks")
    of_head = type(head), id(vars(head).get("forward")), shape, hooks
    of_others = [
        (id(vars(m).get("forward")), hooks_of_others(m, "_forward_hooks"), _floats(m)) for m in around
    ]
    numbers = {name: x for name, x in numbers_of(model).items() if type(x) in (int, float)}
    return of_head, of_others, numbers


def _floats(module: nn.Module) -> dict[str, float]:
    # Some models keep a scale as an attribute. Whole numbers may be counters, which change with every forward.
    return {name: x for name, x in vars(module).items() if type(x) is float}
