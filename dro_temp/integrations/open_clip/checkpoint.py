"""What this package adds to open_clip's checkpoint file, and the parts of it that torch keeps in one piece.

A file of open_clip has the model's groups in "optimizer". This package's group goes under its own key with the loss, so
that plain open_clip loads the file, and resumes from it.
"""

import random
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from dro_temp import distributed
from dro_temp.integrations.open_clip.loss import GROUP

#: Where this package's state is in a checkpoint of open_clip.
KEY = "dro_temp"


def without_temperatures(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An optimizer's state without the group of temperatures, and that group with its state."""
    theirs = [group for group in state["param_groups"] if group.get("name") != GROUP]
    (ours,) = (group for group in state["param_groups"] if group.get("name") == GROUP)
    numbers = list(ours["params"])
    rest = {number: entry for number, entry in state["state"].items() if number not in numbers}
    options = {name: value for name, value in ours.items() if name != "params"}
    entries = [state["state"].get(number, {}) for number in numbers]
    return {**state, "param_groups": theirs, "state": rest}, {"options": options, "state": entries}


def load_temperatures(optimizer: Optimizer, ours: dict[str, Any]) -> None:
    """Load the group of temperatures into an optimizer that has the rest of its state already.

    Its learning rate stays: that of the model may be another in the run that resumes.
    """
    state = optimizer.state_dict()
    (group,) = (group for group in state["param_groups"] if group.get("name") == GROUP)
    entries = dict(zip(group["params"], ours["state"], strict=True))
    group |= {name: value for name, value in ours["options"].items() if name != "lr"}
    optimizer.load_state_dict({**state, "state": state["state"] | {n: e for n, e in entries.items() if e}})


def random_state(device: torch.device) -> dict[str, Any]:
    """State of this process's generators, as values that torch.load reads with weights_only=True."""
    import numpy as np

    numpy: Any = np.random.get_state()
    state = {"torch": torch.get_rng_state(), "python": random.getstate()}
    state["numpy"] = (numpy[0], numpy[1].tolist(), *numpy[2:])
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue with what `random_state` returned."""
    import numpy as np

    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def random_states(device: torch.device) -> list[dict[str, Any]]:
    """Those of all processes, which call this together."""
    own = random_state(device)
    if distributed.world_size() == 1:
        return [own]
    every: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(every, own)
    return every
