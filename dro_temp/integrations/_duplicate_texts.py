"""Numbers of groups for pairs of texts of which some are equal, from their tokens."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from dro_temp import distributed
from dro_temp._typing import RowIndex
from dro_temp.datasets import merged_groups

# Odd numbers of Steele and others' SplitMix64, as int64.
_MIX, _STEP = -4658895280553007687, -7046029254386353131


def _mixed(x: Tensor) -> Tensor:
    """A permutation of the int64 numbers in which close ones are far apart."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _MIX
    return x ^ ((x >> 27) & (2**37 - 1))


def text_numbers(features: Mapping[str, Any]) -> RowIndex:
    """A number >= 0 for each tokenised text, the same for equal tokens however they are padded: a hash.

    Args:
        features: with "input_ids" [n length] and perhaps "attention_mask", or [total] and "offsets" [n].

    Raises:
        ValueError: features without token numbers.

    Example:
        >>> ids, mask = torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> first, second = text_numbers({"input_ids": ids, "attention_mask": mask})
        >>> bool(first == text_numbers({"input_ids": torch.tensor([[5, 6]])})), bool(first == second)
        (True, False)
    """
    tokens = features.get("input_ids")
    if not isinstance(tokens, Tensor):
        raise ValueError(
            f"expected features with 'input_ids', whose equal texts have equal tokens, received {list(features)}. "
            "Leave exclude_duplicates out, and pass groups=... with a number for each sample's group."
        )
    tokens = tokens.long()
    if tokens.dim() == 1:
        offsets = features["offsets"].long()
        place = torch.arange(len(tokens), device=tokens.device)
        text = torch.searchsorted(offsets, place, right=True) - 1
        codes = _mixed((tokens + 1) * _STEP + _mixed(place - offsets[text] + 1))
        total = torch.zeros_like(offsets).index_add(0, text, codes)
    else:
        mask = features.get("attention_mask")
        counts = torch.ones_like(tokens) if mask is None else (mask != 0).long()
        place = counts.cumsum(1)  # from the first token on, wherever the padding is
        total = (_mixed((tokens + 1) * _STEP + _mixed(place)) * counts).sum(1)
    return _mixed(total) & (2**62 - 1)


def groups_of_texts(
    anchor: Mapping[str, Any],
    positive: Mapping[str, Any],
    negatives: Sequence[Mapping[str, Any]],
    further: RowIndex | None,
    *,
    gathers: bool,
) -> tuple[RowIndex, Tensor | None]:
    """Numbers of the pairs' groups, and of the hard negatives', one column after the other.

    Pairs with equal anchors or equal positives are in one group, directly or through others, and so are those with one
    number in `further`. A hard negative that equals a positive is in that one's group. In several processes the pairs
    of all are compared.
    """
    device = (
        anchor["input_ids"].device if isinstance(anchor.get("input_ids"), Tensor) else torch.device("cpu")
    )
    together = gathers and distributed.world_size() > 1
    with distributed.raising_together(device) if together else nullcontext():
        columns = [text_numbers(column) for column in (anchor, positive)]
        of_negatives = torch.cat([text_numbers(column) for column in negatives]) if negatives else None
    columns += [] if further is None else [further.long()]
    start, n = 0, len(columns[0])
    if together:
        gathered, start = distributed.gather_rows(torch.stack(columns, 1))
        columns = list(gathered.unbind(1))
    # The least number of a group's positives: the same in most batches, as a queue of earlier keys needs it.
    numbers, texts = merged_groups(*columns), columns[1]
    alone, number = numbers < 0, numbers.clamp(min=0)
    most = torch.full_like(texts, 2**62)
    least = most.scatter_reduce(0, number, torch.where(alone, most, texts), "amin")
    group = torch.where(alone, texts, least[number])
    if of_negatives is not None and len(texts):
        ordered, order = texts.sort()
        place = torch.searchsorted(ordered, of_negatives).clamp(max=len(texts) - 1)
        of_negatives = torch.where(ordered[place] == of_negatives, group[order[place]], of_negatives)
    return group[start : start + n], of_negatives
