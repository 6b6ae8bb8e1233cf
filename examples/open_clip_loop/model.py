"""An open_clip model small enough to train in seconds."""

from typing import Any

import open_clip
import torch
from torch import nn

from .data import LENGTH, SIZE, TOKENIZER

WIDTH = 64


def tiny_clip() -> open_clip.CLIP:
    """Two transformers of two layers; the same weights at every call."""
    torch.manual_seed(0)
    tower = {"width": 64, "layers": 2}
    vision = tower | {"image_size": SIZE, "head_width": 32, "patch_size": 8}
    text = tower | {"context_length": LENGTH, "vocab_size": TOKENIZER.vocab_size, "heads": 2}
    return open_clip.CLIP(WIDTH, vision, text, output_dict=True)


def groups(model: nn.Module, weight_decay: float = 0.02) -> list[dict[str, Any]]:
    """Parameter groups as in open_clip's main: no weight decay for biases, gains and scales."""
    flat = [p for p in model.parameters() if p.ndim < 2]
    rest = [p for p in model.parameters() if p.ndim >= 2]
    return [{"params": flat, "weight_decay": 0.0}, {"params": rest, "weight_decay": weight_decay}]
