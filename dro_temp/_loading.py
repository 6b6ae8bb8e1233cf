"""Loading a state that does not fit raises before any of it is written."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


class ShapeChecked(nn.Module):
    """A module that checks all shapes of a state before it loads any; torch raises after loading some."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        wrong: list[str] = []
        for start, part in self._checked_parts(prefix):
            for path, module in part.named_modules(remove_duplicate=False):
                name = f"{start}{path}." if path else start
                if isinstance(module, ShapeChecked):
                    module.check_memory(state_dict, name)
                loader = type(module)._load_from_state_dict.__module__.partition(".")[0]
                # Modules with loaders or hooks of their own may convert shapes.
                if loader in ("torch", "dro_temp") and not module._load_state_dict_pre_hooks:
                    wrong += _other_shapes(module, state_dict, name)
        if wrong:
            raise RuntimeError(
                f"expected a state of these modules, received other shapes: {', '.join(wrong)}. Build the parts with "
                "the sizes that they were saved with; nothing was loaded."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[no-untyped-call]

    def _checked_parts(self, prefix: str) -> list[tuple[str, nn.Module]]:
        """Modules whose shapes are checked, and the prefix of their names in the state."""
        return [(prefix, self)]

    def check_memory(self, state: Mapping[str, Any], prefix: str) -> None:
        """Raise ValueError if a state has memory of another number of samples; for modules with memory."""


def _other_shapes(module: nn.Module, state: Mapping[str, Any], prefix: str) -> Iterator[str]:
    buffers = {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}
    for name, ours in {**module._parameters, **buffers}.items():
        loaded = state.get(prefix + name)
        if ours is None or not isinstance(loaded, Tensor) or nn.parameter.is_lazy(ours):
            continue
        if loaded.shape != ours.shape and not (ours.dim() == 0 and loaded.shape == (1,)):  # torch takes those
            yield f"{prefix}{name} {list(loaded.shape)} in place of {list(ours.shape)}"
