"""The network for scikit-learn's 8 x 8 digits."""

from torch import nn


def digits_body(width: int) -> nn.Sequential:
    """Two convolutions and a linear layer: from images [n 1 8 8] to features [n width]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, width),
        nn.GELU(),
    )
