"""Sample numbers, in whatever form data loaders return them."""

from typing import Any

import torch
from torch import Tensor

from dro_temp._checks import holds_integers


def as_index(index: Any, device: torch.device) -> Tensor | None:
    """Sample numbers as a tensor: also those that come as a list, a tuple or a NumPy array.

    Args:
        index: the numbers, or None.
        device: where they are put, unless they are a tensor already.

    Raises:
        TypeError: something else than whole numbers.
    """
    if index is None or isinstance(index, Tensor):
        return index
    received, cause = type(index).__name__, None
    try:
        numbers = torch.as_tensor(index)
        numbers = numbers if numbers.numel() else numbers.long()
        if holds_integers(numbers):
            return numbers.to(device)
        received += f" of {str(numbers.dtype).removeprefix('torch.')}"
    except (TypeError, ValueError, RuntimeError) as error:
        cause = error
    raise TypeError(
        f"expected index as whole numbers, received {received}. Pass each sample's number in the data set as a "
        "tensor, a list or an array of integers; dro_temp.datasets.SampleTable makes numbers of other keys."
    ) from cause
