"""From one long row of tokens to blocks of equal length."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from dro_temp._checks import check_count, check_several


def token_blocks(tokens: Int[Tensor, "n"] | Sequence[int], length: int) -> Int[Tensor, "blocks length"]:
    """Cut a text into blocks that a language model is trained on; the rest at the end is dropped.

    Args:
        tokens: the text.
        length: tokens of a block, at least 2: one to read and one to predict. At most as many as the model has
            positions.

    Returns:
        [len(tokens) // length, length], int64.

    Raises:
        ValueError: no tokens, fewer than one block of them, or more than one row.
        TypeError: tokens or a length that are not whole numbers.

    Example:
        >>> token_blocks(torch.arange(7), 3)
        tensor([[0, 1, 2],
                [3, 4, 5]])
    """
    length = check_count("length", length, minimum=2)
    if not isinstance(tokens, Tensor):
        check_several("tokens", tokens, "Pass a list of token numbers, or a tensor of them.")
    row = torch.as_tensor(tokens)
    if row.dim() != 1 or len(row) == 0:
        raise ValueError(
            f"expected one row of tokens, at least {length}, received the shape {list(row.shape)}. Tokenise a text "
            "that is not empty; join several with torch.cat."
        )
    if row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
        raise TypeError(f"expected whole numbers, received {row.dtype}. Pass tokens.long().")
    if len(row) < length:
        raise ValueError(
            f"expected a text of at least one block of {length} tokens, received {len(row)} tokens. "
            f"Pass a longer text, or length={len(row)} or less."
        )
    return rearrange(row[: len(row) // length * length].long(), "(block token) -> block token", token=length)
