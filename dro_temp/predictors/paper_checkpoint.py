"""Checkpoints that the paper's own code wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dro_temp._checks import check_kind
from dro_temp._optional import optional_module
from dro_temp._tensors import at_least_float32

_PREFIX = "tempnet."
#: From the paper's names, in the order of the network, to ours.
NAMES = {
    "proj.0.weight": "encoder.first.weight",
    "proj.0.bias": "encoder.first.bias",
    "proj.3.weight": "encoder.rest.2.weight",
    "proj.3.bias": "encoder.rest.2.bias",
    "scaler": "readout.log_sharpness",
    "last.weight": "readout.last.weight",
    "last.bias": "readout.last.bias",
}


def reference_state(source: Mapping[str, Any] | str | Path) -> dict[str, Tensor]:
    """The parameters under our names, in float32 or better; see `TempNet.from_reference`."""
    loaded = source if isinstance(source, Mapping) else _load(Path(source))
    state = {name.removeprefix(_PREFIX): value for name, value in loaded.items()}
    missing = [_PREFIX + name for name in NAMES if name not in state]
    unknown = [name for name in loaded if name.removeprefix(_PREFIX) not in NAMES]
    unknown += [name for name in loaded if _PREFIX + name in loaded]  # with and without the prefix: ambiguous
    if missing or unknown:
        shown = unknown[:8] + (["..."] if len(unknown) > 8 else [])
        raise ValueError(
            f"expected the keys {', '.join(_PREFIX + name for name in NAMES)}, received a checkpoint of {len(loaded)} "
            f"keys: missing {', '.join(missing) or 'none'}; unknown {', '.join(shown) or 'none'}. Pass the TempNet's "
            "own part, {k: v for k, v in state.items() if k.startswith('tempnet.')}."
        )
    if state["scaler"].dim() == 0:  # in training; [1] in converted checkpoints
        state["scaler"] = state["scaler"].reshape(1)
    first = list(state["proj.0.weight"].shape)
    width, outcomes = first if len(first) == 2 else (-1, -1)  # fits nothing
    shapes = [[width, outcomes], [width], [width, width], [width], [1], [1, width], [1]]
    found = {name: list(state[name].shape) for name in NAMES}
    wrong = [
        f"{name} {shape}" for (name, shape), fit in zip(found.items(), shapes, strict=True) if shape != fit
    ]
    if wrong:
        raise ValueError(
            f"expected one hidden width throughout, and one number for the scaler, received {', '.join(wrong)}. "
            "Pass the checkpoint of one TempNet."
        )
    return {ours: at_least_float32(state[theirs].detach()) for theirs, ours in NAMES.items()}


def _load(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the file of a published checkpoint, received {str(path)!r}, which is none. Pass the path of "
            "tempnet.safetensors or tempnet.bin, or a state dict."
        )
    state: dict[str, Tensor]
    if path.suffix == ".safetensors":
        state = optional_module("safetensors.torch", "for saving and loading").load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    check_kind(
        "the checkpoint", state, dict, "Pass the file of a state dict, as torch.save(net.state_dict(), ...)."
    )
    return state
