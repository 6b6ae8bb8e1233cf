"""Numbers of groups, whose members are no negatives of each other: of equal keys, and of several groupings together."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dro_temp._checks import check_integers, check_several
from dro_temp._typing import RowIndex
from dro_temp.datasets.indexed import SampleKey, SampleTable
from dro_temp.functional import UNGROUPED


def group_numbers(keys: Iterable[SampleKey | None]) -> RowIndex:
    """A number for each key, the same for equal keys: of captions, paths or labels; -1 for None, which is alone.

    It is a hash (`SampleTable` of $2^{62}$ entries), so that the number of a caption is the same in every batch,
    process and run, and no table of all captions is needed. Bring the keys into one form first:
    `caption.strip().lower()`.

    Args:
        keys: one for each pair.

    Raises:
        TypeError: a key that is not a str, bytes, int or None.

    Example:
        >>> numbers = group_numbers(["a dog", "a cat", "a dog", None])
        >>> bool(numbers[0] == numbers[2]), bool(numbers[0] == numbers[1]), int(numbers[3])
        (True, False, -1)
    """
    table = SampleTable(2**62)
    check_several("keys", keys, "Pass keys=captions, one for each pair.")
    if isinstance(keys, bytes):
        return table.numbers(keys)  # whose error says what to type
    return torch.tensor([UNGROUPED if key is None else table(key) for key in keys], dtype=torch.int64)


def merged_groups(*groups: RowIndex) -> RowIndex:
    """Groups of samples that share a group in any of several groupings, directly or through others.

    Of captions and of images, say: `group_numbers` of the captions, `evaluation.near_duplicate_groups` of the images.

    Args:
        *groups: numbers of the same samples' groups, [n] each; a negative one is alone.

    Raises:
        TypeError: groups that are not integers.
        ValueError: no groups, or groups of different lengths.

    Example:
        >>> of_captions, of_images = torch.tensor([4, 4, -1, 5, -1]), torch.tensor([-1, 0, 0, -1, -1])
        >>> merged_groups(of_captions, of_images)
        tensor([ 0,  0,  0, -1, -1])
    """
    for group in groups:
        check_integers("groups", group)
    if not groups or any(group.shape != groups[0].shape or group.dim() != 1 for group in groups):
        raise ValueError(
            f"expected numbers of the same samples' groups, [n] each, received shapes "
            f"{[list(group.shape) for group in groups]}. Write merged_groups(of_captions, of_images)."
        )
    root = torch.arange(len(groups[0]), device=groups[0].device)
    for group in groups:
        ordered, order = group.long().sort(stable=True)
        same = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
        root = joined_roots(root, order[1:][same], order[:-1][same])
    return numbered_roots(root)


def joined_roots(root: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Roots of the components, each its least member, after samples a and b of each pair are joined."""
    while True:
        low, high = torch.minimum(root[a], root[b]), torch.maximum(root[a], root[b])
        apart = low != high
        if not bool(apart.any()):
            return root
        a, b = a[apart], b[apart]
        root = root.scatter_reduce(0, high[apart], low[apart], "amin")
        while not torch.equal(further := root[root], root):
            root = further


def numbered_roots(root: Tensor) -> RowIndex:
    """Numbers from 0 on of components of two members or more, in the order of their least; -1 for the others."""
    of_sizes = torch.bincount(root, minlength=len(root)) > 1
    return torch.where(of_sizes[root], (of_sizes.long().cumsum(0) - 1)[root], UNGROUPED)
