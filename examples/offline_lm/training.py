"""A training loop that can be stopped and resumed at any time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

BATCH, SAVE_EVERY, WARM_UP = 16, 50, 20


def train(
    path: Path,
    module: nn.Module,
    groups: list[dict[str, Any]],
    loss_of: Callable[[Tensor], Tensor],
    blocks: Tensor,
    steps: int,
) -> None:
    """Train, and save every 50 steps; resume from an earlier checkpoint.

    Args:
        path: path of the checkpoint.
        module: what is trained and saved.
        groups: its parameters for AdamW, each with its learning rate.
        loss_of: loss of a batch of blocks.
        blocks: tokens, [n length].
        steps: total number of steps, those of earlier calls included.
    """
    optimizer, first = torch.optim.AdamW(groups), 0
    peaks = [group["lr"] for group in optimizer.param_groups]
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in track(range(first, steps), description=path.name.partition("-")[0]):
        # Learning rate and batch depend on the step alone, so a resumed run equals an uninterrupted one.
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min((step + 1) / WARM_UP, 1 - step / steps)
        chosen = torch.randint(len(blocks), (BATCH,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss_of(blocks[chosen]).backward()
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)  # the checkpoint is replaced atomically
