"""One sweep over data: rows of the host, some of them at a time."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dro_temp.evaluation._progress import shown
from dro_temp.interfaces import HostAdapter, Rows

#: Token numbers [batch length], or the host's own keyword arguments.
Batch: TypeAlias = Tensor | Mapping[str, Any]

SCORES_AT_A_TIME = 2**22  # 16 MiB in float32; the exact temperature needs a few copies of it


def check_batches(name: str, batches: Iterable[Batch]) -> None:
    """Raise unless these are batches that can be swept more than once."""
    if isinstance(batches, Tensor):
        raise TypeError(
            f"expected {name} as several batches, received one tensor of shape {list(batches.shape)}. "
            f"Pass {name}=blocks.split(8)."
        )
    if iter(batches) is batches:
        raise TypeError(
            f"expected {name} that can be swept more than once, received {type(batches).__name__}, which is used up "
            f"after one sweep. Pass {name}=list(batches), or a DataLoader."
        )


def blocks_of_rows(host: HostAdapter, batches: Iterable[Batch], title: str | None) -> Iterator[Rows]:
    """The rows that count, with their scores computed, a block at a time.

    Args:
        host: with one view.
        batches: what it is called with.
        title: what a progress bar says; None for no bar.
    """
    device = next((p.device for p in host.parameters()), torch.device("cpu"))
    for batch in shown(batches, title):
        given: Mapping[str, Any] = {"input_ids": batch} if isinstance(batch, Tensor) else batch
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()}
        (rows,) = host(**moved).values()
        step = max(1, SCORES_AT_A_TIME // max(1, rows.scores.shape[1]))
        for number in rows.valid.nonzero()[:, 0].split(step):
            if len(number):  # a batch of padding alone has no rows
                yield rows.select(number).dense()
