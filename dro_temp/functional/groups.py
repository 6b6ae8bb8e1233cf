"""Groups of rows and columns: false negatives are columns of the row's own group, and no outcomes of the row.

Numbers of groups are vectors, [n] of rows and [m] of columns. Which columns they exclude is never stored as a matrix,
except where the score matrix is.
"""

import torch
from torch import Tensor

from dro_temp._typing import Mask, RowIndex

#: A group number, as every negative one: of a row or column that is alone in its group.
UNGROUPED = -1
#: Another: such a column is in no row's support, and such a row has no outcomes.
LEFT_OUT = -2

# Ungrouped columns, which must not equal the ungrouped rows.
_UNGROUPED_COLUMN = -3


def comparable_groups(group: RowIndex, column_group: Tensor) -> tuple[RowIndex, Tensor]:
    """Numbers of rows and columns, int64, of which two are equal where a column is excluded by its group or both by -2.

    Example:
        >>> comparable_groups(torch.tensor([4, -1, -7]), torch.tensor([4, -1, -2, -7]))
        (tensor([ 4, -1, -1]), tensor([ 4, -3, -2, -3]))
    """
    rows, columns = group.long(), column_group.long()
    rows = torch.where((rows < 0) & (rows != LEFT_OUT), UNGROUPED, rows)
    return rows, torch.where((columns < 0) & (columns != LEFT_OUT), _UNGROUPED_COLUMN, columns)


def excluded_by_group(group: RowIndex, column_group: Tensor, target: RowIndex) -> Mask:
    """True where a column is not an outcome of a row: both have one group, or either is left out; never at the target.

    Args:
        group: number of each row's group, [n]; a negative one is nobody's, and `LEFT_OUT` has no outcomes.
        column_group: number of each column's, [m]; a negative one is nobody's, and `LEFT_OUT` in no support.
        target: column of each row's target, [n].

    Example:
        >>> excluded_by_group(torch.tensor([3, -1]), torch.tensor([3, 3, -1, -2]), torch.tensor([0, 1]))
        tensor([[False,  True, False,  True],
                [False, False, False,  True]])
    """
    rows, columns = comparable_groups(group, column_group)
    return excluded_where_equal(rows, columns, target)


def excluded_where_equal(rows: RowIndex, columns: Tensor, target: RowIndex) -> Mask:
    """As `excluded_by_group`, from `comparable_groups`."""
    left_out = (rows == LEFT_OUT)[:, None] | (columns == LEFT_OUT)
    return ((rows[:, None] == columns) | left_out).scatter_(1, target.long()[:, None], False)


def support_sizes(
    group: RowIndex, column_group: Tensor, target: RowIndex, *, target_in_support: bool
) -> RowIndex:
    """Number of outcomes of each row, from the group numbers alone: sorted, and never compared each with each.

    Args:
        group: see `excluded_by_group`.
        column_group: likewise.
        target: likewise.
        target_in_support: whether the target is one of the outcomes.

    Example:
        >>> target = torch.tensor([0, 1])
        >>> support_sizes(torch.tensor([3, -1]), torch.tensor([3, 3, -1, -2]), target, target_in_support=False)
        tensor([1, 2])
    """
    m = column_group.shape[0]
    if m == 0:
        return torch.zeros_like(group, dtype=torch.long)
    rows, columns = comparable_groups(group, column_group)
    ordered = columns.sort().values
    equal = torch.searchsorted(ordered, rows, right=True) - torch.searchsorted(ordered, rows)
    # A row that does not count may have any target.
    of_target = columns[target.long().clamp(0, m - 1)]
    excluded = equal + (columns == LEFT_OUT).sum()
    excluded = excluded - ((of_target == rows) | (of_target == LEFT_OUT)).long()
    own = 0 if target_in_support else 1
    return torch.where(rows == LEFT_OUT, 1 - own, m - own - excluded)
