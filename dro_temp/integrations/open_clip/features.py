"""A host for loops that keep the model to themselves: it is given what the towers returned."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dro_temp._tensors import at_least_float32
from dro_temp.hosts._pairs import pair_rows
from dro_temp.interfaces import HostAdapter, Rows

_ROUNDING = 0.02  # a unit vector in bfloat16 is not that far from length one
_OTHER_LOSSES = {"logits": "CoCa's caption loss", "dist_image_features": "distillation"}


class FeaturesHost(HostAdapter):
    """Image rows and text rows of vectors that another loop's model made."""

    views = ("image", "text")
    mirrored = ("image", "text")

    def __init__(self) -> None:
        super().__init__()
        # An objective sees by its parameters whether a step was taken, and those of the model are not here.
        # This one belongs to the loop's optimizer, has a gradient of zero, and stays zero.
        self.watched = nn.Parameter(torch.zeros(1))

    def rows(self, image: Tensor, text: Tensor, index: Any = None) -> dict[str, Rows]:
        """Rows of both sides.

        Args:
            image: unit vectors [n d].
            text: unit vectors [n d].
            index: the pairs' numbers in the data set, also as a list or an array.
        """
        return pair_rows(
            at_least_float32(image), at_least_float32(text), index, gathers=self.objective_trains
        )


def refuse_other_shapes(name: str, features: Tensor) -> None:
    """Raise unless these are [n d]."""
    if not isinstance(features, Tensor) or features.dim() != 2:
        received = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"expected {name} [n, d], received {received}. Pool to one vector per input, and pass both images and "
            "texts to the model."
        )


def refuse_other_lengths(name: str, features: Tensor) -> None:
    """Raise where a row is not of length one; NaN passes: other checks report it."""
    length = torch.linalg.vector_norm(features.detach().float(), dim=1)
    wrong = (length - 1).abs() > _ROUNDING
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"expected {name} of length one, received {float(length[row]):.3g} in row {row}. Call the model itself, "
            "whose forward normalises, or encode_image(images, normalize=True)."
        )


def refuse_other_models(outputs: Iterable[str]) -> None:
    """Raise where a model or loop returned what needs a loss of its own, which would be ignored."""
    for name in outputs:
        if name in _OTHER_LOSSES:
            raise TypeError(
                f"expected what a plain CLIP returns, received {name!r} as well, which is for {_OTHER_LOSSES[name]}. "
                "Train without it, or write a loss that adds it to OpenClipLoss."
            )
