"""One sweep over data: rows of the host, some of them at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dro_temp._checks import check_several
from dro_temp._typing import PerRow
from dro_temp.evaluation._progress import shown
from dro_temp.interfaces import HostAdapter, Rows

#: Token numbers [batch length], or the host's own keyword arguments.
Batch: TypeAlias = Tensor | Mapping[str, Any]
#: What a host is called with: one tensor, several arguments in order, or keyword arguments.
HostBatch: TypeAlias = Batch | Sequence[Any]

SCORES_AT_A_TIME = 2**22  # 16 MiB in float32; the exact temperature needs a few copies of it


def check_batches(name: str, batches: Iterable[HostBatch]) -> None:
    """Raise unless these are batches that can be swept more than once."""
    if isinstance(batches, Tensor):
        raise TypeError(
            f"expected {name} as several batches, received one tensor of shape {list(batches.shape)}. "
            f"Pass {name}=blocks.split(8)."
        )
    check_several(name, batches, f"Pass {name}=[batch], or a DataLoader.")
    if iter(batches) is batches:
        raise TypeError(
            f"expected {name} that can be swept more than once, received {type(batches).__name__}, which is used up "
            f"after one sweep. Pass {name}=list(batches), or a DataLoader."
        )


def rows_of(host: HostAdapter, batch: HostBatch) -> dict[str, Rows]:
    """What the host makes of a batch, which is moved to where the host is."""
    device = next((p.device for p in host.parameters()), torch.device("cpu"))
    moved = _moved(batch, device)
    positional = moved if isinstance(moved, list) else [moved]
    made: dict[str, Rows] = host(**moved) if isinstance(moved, Mapping) else host(*positional)
    return made


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(part, device) for part in value]
    return value


def weight_of(rows: Rows) -> PerRow:
    """Weight of each row; 1 where none is given."""
    return torch.ones(len(rows), device=rows.target.device) if rows.weight is None else rows.weight


def blocks_of_rows(host: HostAdapter, batches: Iterable[HostBatch], title: str | None) -> Iterator[Rows]:
    """The rows that count, with their scores computed, a block at a time.

    Args:
        host: with one view.
        batches: what it is called with.
        title: what a progress bar says; None for no bar.
    """
    for batch in shown(batches, title):
        (rows,) = rows_of(host, {"input_ids": batch} if isinstance(batch, Tensor) else batch).values()
        step = max(1, SCORES_AT_A_TIME // max(1, rows.scores.shape[1]))
        for number in torch.split(rows.valid.nonzero()[:, 0], step):
            if len(number):  # a batch of padding alone has no rows
                yield rows.select(number).dense()
