"""Which scores of a block groups exclude, from the numbers of the groups: [n] of rows and [m] of columns, never [n m].

On a CPU the columns are sorted by their group once for each pass. A block then has few excluded scores, one pair of
coordinates each, or so many that comparing all of its rows with all columns is faster. On a device, which would wait
for their number, all are compared; kernels that have a tile of scores on the chip compare there.
"""

import torch
from torch import Tensor

from dro_temp import _faults
from dro_temp._tensors import row_groups
from dro_temp._typing import Mask, RowIndex, Scores
from dro_temp.functional.groups import LEFT_OUT, UNGROUPED, comparable_groups, excluded_where_equal
from dro_temp.functional.statistics import NOT_AN_OUTCOME
from dro_temp.interfaces.rows import Rows

# Excluded scores, over all scores of a block, from which on comparing costs less than coordinates.
_MANY = 1 / 16


class Exclusions:
    """Columns that groups exclude from the supports of some rows.

    Args:
        group: number of each row's group, [n], see `functional.excluded_by_group`.
        column_group: number of each column's, [m].
        target: column of each row's target, [n], which is never excluded here.

    Example:
        >>> exclusions = Exclusions(torch.tensor([3, -1]), torch.tensor([3, 3, -2]), torch.tensor([0, 1]))
        >>> exclusions.fill_(torch.zeros(2, 3), slice(0, 2), 1.0)
        tensor([[0., 1., 1.],
                [0., 0., 1.]])
    """

    def __init__(self, group: RowIndex, column_group: Tensor, target: RowIndex) -> None:
        #: Of rows and of columns, see `comparable_groups`.
        self.rows, self.columns = comparable_groups(group, column_group)
        self.target = target.long()
        self._coordinates: _Coordinates | None = None
        self._places: tuple[RowIndex, Tensor] | None = None

    @classmethod
    def of(cls, rows: Rows) -> "Exclusions":
        """Those of rows with groups."""
        assert rows.group is not None
        assert rows.column_group is not None
        return cls(rows.group, rows.column_group, rows.target)

    def groups(self, rows: slice = slice(None)) -> tuple[RowIndex, Tensor]:
        """What kernels compare: numbers of some rows, and of the columns.

        In int32, since a tile of comparisons takes registers: places among the columns, sorted by their group.
        """
        if self._places is None:
            ordered = self.columns.sort().values
            of_rows = torch.searchsorted(ordered, self.rows, out_int32=True)
            is_there = (
                ordered[of_rows.clamp(max=len(ordered) - 1)] == self.rows if len(ordered) else of_rows < 0
            )
            of_columns = torch.searchsorted(ordered, self.columns, out_int32=True)
            self._places = (
                torch.where(is_there, of_rows, UNGROUPED).masked_fill_(self.rows == LEFT_OUT, LEFT_OUT),
                of_columns.masked_fill_(self.columns == LEFT_OUT, LEFT_OUT),
            )
        return self._places[0][rows], self._places[1]

    def mask(self, rows: slice) -> Mask:
        """True where a column is excluded, for some of the rows."""
        return excluded_where_equal(self.rows[rows], self.columns, self.target[rows])

    def fill_(self, scores: Scores, rows: slice, value: float = NOT_AN_OUTCOME) -> Scores:
        """Overwrite the excluded scores of some rows, [rows m]; targets stay."""
        if scores.is_floating_point():
            value = max(value, torch.finfo(scores.dtype).min)
        if scores.is_cpu and not _faults.everywhere:
            if self._coordinates is None:
                self._coordinates = _Coordinates(self.rows, self.columns)
            place = self._coordinates.few(rows, len(self.columns))
            if place is not None:
                target = self.target[rows, None]
                of_target = scores.gather(1, target)
                scores[place] = value
                return scores.scatter_(1, target, of_target)
        for group in row_groups(scores):  # in the CPU's cache
            at = slice(rows.start + group.start, rows.start + group.stop)
            scores[group].masked_fill_(self.mask(at), value)
        return scores


class _Coordinates:
    """Excluded scores as rows and columns, from columns sorted by their group."""

    def __init__(self, rows: RowIndex, columns: Tensor) -> None:
        ordered, self.order = columns.sort()
        self.first = torch.searchsorted(ordered, rows)
        self.count = torch.searchsorted(ordered, rows, right=True) - self.first
        self.left_out = (columns == LEFT_OUT).nonzero()[:, 0]
        # Of a row that is left out, every column is excluded: an interval of all.
        none = rows == LEFT_OUT
        self.first.masked_fill_(none, 0)
        self.count.masked_fill_(none, len(columns))

    def few(self, rows: slice, m: int) -> tuple[Tensor, Tensor] | None:
        """Rows of a block, and columns; None if they are many."""
        first, count = self.first[rows], self.count[rows]
        total, n = int(count.sum()), len(count)
        if total + n * len(self.left_out) > _MANY * n * m:
            return None
        row = torch.arange(n)
        at_row = torch.repeat_interleave(row, count, output_size=total)
        before = count.cumsum(0) - count
        place = torch.arange(total) - before[at_row] + first[at_row]
        at_column = self.order[place]
        if len(self.left_out):
            at_row = torch.cat([at_row, row.repeat_interleave(len(self.left_out))])
            at_column = torch.cat([at_column, self.left_out.repeat(n)])
        return at_row, at_column
