"""Sample numbers, as data loaders hand them out."""

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
    try:
        numbers = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _refusal(type(index).__name__) from error
    if numbers.numel() == 0:
        numbers = numbers.long()
    if not holds_integers(numbers):
        raise _refusal(f"{type(index).__name__} of {str(numbers.dtype).removeprefix('torch.')}")
    return numbers.to(device)


def _refusal(received: str) -> TypeError:
    return TypeError(
        f"expected index as whole numbers, received {received}. Pass each sample's number in the data set as a "
        "tensor, a list or an array of integers; dro_temp.datasets.SampleTable makes numbers of other keys."
    )
