"""Evaluation of frozen features: classify a glyph's name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dro_temp.evaluation import knn_accuracy, linear_probe

from .data import Data, Labelled

K, STRENGTHS, STEPS = 5, (1e-2, 1e-3, 1e-4), 100


def pixels(images: Tensor) -> Tensor:
    """Raw pixels as features, the baseline without an encoder."""
    return images.flatten(1)


# --8<-- [start:evaluate]
def evaluate(encode: Callable[[Tensor], Tensor], data: Data, *, test: bool = True) -> dict[str, float]:
    """Accuracies in percent, by the five nearest training images and by a linear layer.

    Args:
        encode: images [n 1 32 32] to features [n d].
        data: labelled images.
        test: False to evaluate on validation images alone, with nearest neighbours.
    """
    train, val = _features(encode, data.train), _features(encode, data.val)
    std, mean = torch.std_mean(train, dim=0)
    scale = std.clamp(min=1e-3)  # pixels that are always black
    train, val = (train - mean) / scale, (val - mean) / scale
    scores = {"val_knn": knn_accuracy(train, data.train.name, val, data.val.name, k=K)}
    if not test:
        return scores
    x = (_features(encode, data.test) - mean) / scale
    splits = ((train, data.train.name), (val, data.val.name), (x, data.test.name))
    scores["knn"] = knn_accuracy(train, data.train.name, x, data.test.name, k=K)
    scores["probe"] = linear_probe(*splits, strengths=STRENGTHS, steps=STEPS).accuracy
    return scores


# --8<-- [end:evaluate]


@torch.no_grad()
def _features(encode: Callable[[Tensor], Tensor], split: Labelled) -> Tensor:
    if isinstance(encode, nn.Module):
        encode.eval()
    return torch.cat([encode(part[:, None] / 255.0) for part in split.images.split(512)])
