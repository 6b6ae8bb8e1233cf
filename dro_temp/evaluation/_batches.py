"""Running a host over batches of data: progress bars, rows block by block, no side effects."""

import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from dro_temp._checks import check_several
from dro_temp._modes import evaluating
from dro_temp._optional import optional_module
from dro_temp._typing import PerRow
from dro_temp.interfaces import HostAdapter, Rows, TemperaturePredictor

T = TypeVar("T")
#: Token ids [batch length], or the host's own keyword arguments.
Batch: TypeAlias = Tensor | Mapping[str, Any]
#: What a host is called with: one tensor, several arguments in order, or keyword arguments.
HostBatch: TypeAlias = Batch | Sequence[Any]
Predictors: TypeAlias = TemperaturePredictor | Mapping[str, TemperaturePredictor]

SCORES_AT_A_TIME = 2**22  # 16 MiB in float32; the exact temperature needs a few copies of it


def with_progress(parts: Iterable[T], title: str | None) -> Iterable[T]:
    """The same parts, under a progress bar unless `title` is None. Raises ImportError without rich."""
    if title is None:
        return parts
    progress = optional_module("rich.progress", "which draws bars where progress=True", extra="recipes")
    tracked: Iterable[T] = progress.track(parts, description=title)
    return tracked


def check_batches(**named: Iterable[HostBatch]) -> None:
    """Raise unless these are batches that can be iterated over more than once."""
    for name, batches in named.items():
        if isinstance(batches, Tensor):
            raise TypeError(
                f"expected {name} as several batches, received one tensor {list(batches.shape)}. Pass blocks.split(8)."
            )
        check_several(name, batches, f"Pass {name}=[batch], or a DataLoader.")
        if iter(batches) is batches:
            raise TypeError(
                f"expected {name} that can be iterated over more than once, received {type(batches).__name__}, which "
                f"is used up after one pass. Pass {name}=list(batches), or a DataLoader."
            )


def moved(value: Any, device: torch.device | None) -> Any:
    """All tensors of a batch on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(part, device) for name, part in value.items()}
    return [moved(part, device) for part in value] if isinstance(value, list | tuple) else value


def rows_of(host: HostAdapter, batch: HostBatch) -> dict[str, Rows]:
    """The host's rows of a batch, which is moved to the host's device."""
    batch = moved(batch, next((p.device for p in host.parameters()), torch.device("cpu")))
    arguments = batch if isinstance(batch, list) else [batch]
    rows: dict[str, Rows] = host(**batch) if isinstance(batch, Mapping) else host(*arguments)
    return rows


def weight_of(rows: Rows) -> PerRow:
    """Weight of each row, 1 by default."""
    return torch.ones(len(rows), device=rows.target.device) if rows.weight is None else rows.weight


class ScoredRows:
    """What every temperature needs of a block of rows: computed once for all of them."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.scores = rows, rows.dense_scores
        self.label, self.weight = rows.target.long(), weight_of(rows)
        self.target_score = self.scores.gather(1, self.label[:, None])[:, 0]
        self.top, self.predicted = self.scores.max(1)
        self.correct = self.predicted == self.label


def row_blocks(
    host: HostAdapter, batches: Iterable[HostBatch], title: str | None, what: str = "row"
) -> Iterator[ScoredRows]:
    """The valid rows of a host with one view, block by block; raise if there is no `what`."""
    count = 0
    for batch in with_progress(batches, title):
        (rows,) = rows_of(host, {"input_ids": batch} if isinstance(batch, Tensor) else batch).values()
        size = max(1, SCORES_AT_A_TIME // max(1, rows.scores.shape[1]))
        for index in torch.split(rows.valid.nonzero()[:, 0], size):
            if len(index):  # a batch of padding alone has no rows
                count += len(index)
                yield ScoredRows(rows.select(index).dense())
    if count == 0:
        raise ValueError(
            f"expected data with at least one {what}, received none. Pass batches with labels other than -100."
        )


def named_predictors(
    predictors: Predictors | None, reserved: Sequence[str], host: HostAdapter, instead: str
) -> dict[str, TemperaturePredictor]:
    """Predictors by name; raise where a name is reserved, or the host has several views."""
    if len(host.views) != 1:
        raise ValueError(
            f"expected a host with one view, received {type(host).__name__} with {list(host.views)}. Pass {instead}."
        )
    if isinstance(predictors, TemperaturePredictor):
        return {"predictor": predictors}
    named = dict(predictors or {})
    if set(reserved) & set(named):
        raise ValueError(
            f"expected names other than {', '.join(reserved)}, received {', '.join(named)}. Pass {{'net': tempnet}}."
        )
    return named


@contextmanager
def without_side_effects(module: nn.Module) -> Iterator[None]:
    """Evaluation mode on this process alone; modes and random states are restored afterwards.

    A data loader draws a random number each time that it is iterated over, and data may be augmented at random: the
    generators of torch, Python and NumPy are all restored.
    """
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with ExitStack() as afterwards, torch.random.fork_rng(devices=list(devices)), evaluating(module):
        afterwards.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):  # code that has not imported it draws nothing from it
            afterwards.callback(numpy.random.set_state, numpy.random.get_state())
        for host in module.modules():
            if isinstance(host, HostAdapter):
                afterwards.callback(setattr, host, "objective_trains", host.objective_trains)
                host.objective_trains = False  # else it waits for the rows of other processes
        yield
