"""Checkpoints of the paper's own code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dro_temp._checks import check_kind
from dro_temp._optional import optional_module
from dro_temp._tensors import at_least_float32

_PREFIX = "tempnet."
#: Their names, in the order of the network, and ours.
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
    """The parameters under our names, in float32 or better.

    Args:
        source: a state dict, or a file with one: `.safetensors`, or what `torch.save` wrote.

    Raises:
        ValueError: keys are missing or unknown, or shapes that do not belong together.
    """
    given = source if isinstance(source, Mapping) else _read(Path(source))
    state = {name.removeprefix(_PREFIX): value for name, value in given.items()}
    _check_keys(state, given)
    found = {ours: at_least_float32(state[theirs].detach()) for theirs, ours in NAMES.items()}
    sharpness = NAMES["scaler"]
    found[sharpness] = found[sharpness].reshape(1)  # [1] in converted checkpoints, [] in training
    return found


def _check_keys(state: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    missing = [_PREFIX + name for name in NAMES if name not in state]
    unknown = [name for name in given if name.removeprefix(_PREFIX) not in NAMES]
    unknown += [name for name in given if _PREFIX + name in given]  # which of the two would be meant?
    if not missing and not unknown:
        wrong = _wrong_shapes({name: tuple(x.shape) for name, x in state.items()})
        if not wrong:
            return
        raise ValueError(
            f"expected one hidden width throughout, and one number for the scaler, received {', '.join(wrong)}. "
            "Pass the checkpoint of one TempNet."
        )
    shown = unknown[:8] + (["..."] if len(unknown) > 8 else [])
    raise ValueError(
        f"expected the keys {', '.join(_PREFIX + name for name in NAMES)}, received a checkpoint of {len(given)} keys: "
        f"missing {', '.join(missing) or 'none'}; unknown {', '.join(shown) or 'none'}. Pass the TempNet's own part, "
        "{k: v for k, v in state.items() if k.startswith('tempnet.')}."
    )


def _wrong_shapes(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    width = (shapes["proj.0.weight"] or (0,))[0]
    expected = {
        "proj.0.weight": (width, shapes["proj.0.weight"][-1] if len(shapes["proj.0.weight"]) == 2 else -1),
        "proj.0.bias": (width,),
        "proj.3.weight": (width, width),
        "proj.3.bias": (width,),
        "last.weight": (1, width),
        "last.bias": (1,),
    }
    wrong = [f"{name} {list(shapes[name])}" for name, shape in expected.items() if shapes[name] != shape]
    return wrong + ([] if shapes["scaler"] in ((), (1,)) else [f"scaler {list(shapes['scaler'])}"])


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the file of a published checkpoint, received {str(path)!r}, which is none. Pass the path of "
            "tempnet.safetensors or tempnet.bin, or a state dict."
        )
    if path.suffix == ".safetensors":
        state: dict[str, Tensor] = optional_module("safetensors.torch", "for saving and loading").load_file(
            path
        )
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    check_kind(
        "the checkpoint", state, dict, "Pass the file of a state dict, as torch.save(net.state_dict(), ...)."
    )
    return state
