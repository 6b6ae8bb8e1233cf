"""Communication between processes. Without a process group every function is the identity."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dro_temp._faults import checks_now


def world_size() -> int:
    """Number of processes that train together; 1 without a process group.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 without a process group.

    Example:
        >>> rank()
        0
    """
    return dist.get_rank() if world_size() > 1 else 0


@dataclass
class Traffic:
    """Bytes that this process sends to others.

    Args:
        gathered: by gathering, in which every process sends its rows to each of the others.
        reduced: by sums over processes, in which a ring sends 2 (W - 1) / W of the tensor.

    Example:
        >>> Traffic(gathered=100, reduced=20).sent
        120
    """

    gathered: int = 0
    reduced: int = 0

    @property
    def sent(self) -> int:
        """Both."""
        return self.gathered + self.reduced


# Not a context variable: a device's backward runs in a thread of its own.
_counting: list[Traffic] = []


@contextmanager
def counting_traffic() -> Iterator[Traffic]:
    """Count the bytes that this process sends inside the block, without DistributedDataParallel's own sums.

    Example:
        >>> with counting_traffic() as traffic:
        ...     gather_rows(torch.zeros(8, 4))[0].shape
        torch.Size([8, 4])
        >>> traffic.sent  # alone, nothing
        0
    """
    traffic = Traffic()
    _counting.append(traffic)
    try:
        yield traffic
    finally:
        _counting[:] = [other for other in _counting if other is not traffic]


def _count(gathered: Tensor | None = None, reduced: Tensor | None = None) -> None:
    others = world_size() - 1
    for traffic in _counting:
        traffic.gathered += 0 if gathered is None else others * gathered.nbytes
        traffic.reduced += 0 if reduced is None else 2 * others * reduced.nbytes // (others + 1)


def refuse_missing_group() -> None:
    """Raise if a launcher started several processes without a process group.

    Raises:
        RuntimeError: each of them would train alone, on its own share of the columns.

    Example:
        >>> refuse_missing_group()  # one process
    """
    launched = os.environ.get("WORLD_SIZE", "1")
    if launched.isdigit() and int(launched) > 1 and not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"expected a process group, since WORLD_SIZE={launched} says that this process is one of {launched}, "
            'received none. Call torch.distributed.init_process_group("nccl" or "gloo") before the first step (Trainer '
            "and accelerate do), or unset WORLD_SIZE."
        )


@contextmanager
def raising_together(device: torch.device) -> Iterator[None]:
    """Around a check of this process's own data: if it fails on one process, it fails on all.

    If one process stopped alone, the others would hang. Every process must enter the block; a single one does nothing.
    The device is that of the message to the other processes.

    Raises:
        RuntimeError: another process failed; its own error says why.

    Example:
        >>> with raising_together(torch.device("cpu")):
        ...     assert 1 + 1 == 2
    """
    error: Exception | None = None
    try:
        with checks_now():  # a fault that one process noticed later would stop that one alone
            yield
    except Exception as raised:
        error = raised
    if world_size() > 1:
        failed = torch.tensor([error is not None], dtype=torch.uint8, device=device)
        _count(reduced=failed)
        dist.all_reduce(failed, op=dist.ReduceOp.MAX)
        if error is None and bool(failed):
            raise RuntimeError(
                f"expected all {world_size()} processes to go on, received an error on another than number {rank()}. "
                "That one's own message says what to type."
            )
    if error is not None:
        raise error


def _all_gather(x: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(x) for _ in range(world_size())]
    _count(gathered=x)
    dist.all_gather(parts, x)
    return parts


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.rows = slice(sum(counts[: rank()]), sum(counts[: rank() + 1]))
        # all_gather needs equal shapes: pad short ranks and remove the padding.
        padded = x.new_zeros((max(counts), *x.shape[1:]))
        padded[: x.shape[0]] = x
        return torch.cat([part[:n] for part, n in zip(_all_gather(padded), counts, strict=True)])

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Every rank's loss depends on every rank's rows: their gradients add up.
        return sum_over_processes(grads[0])[ctx.rows], None


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes in rank order, and where this process's rows start. No gradient.

    Processes may hold different numbers of rows.

    Example:
        >>> gather_rows(torch.tensor([1.0, 2.0]))
        (tensor([1., 2.]), 0)
    """
    return gather_rows_with_gradient(x.detach())


def gather_rows_with_gradient(x: Tensor) -> tuple[Tensor, int]:
    """As `gather_rows`; the gradient of each process's loss flows back to the rows' owner, summed.

    With DistributedDataParallel, which averages parameter gradients over processes, the result is the
    gradient of the mean of the processes' losses.

    Example:
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> gathered, start = gather_rows_with_gradient(x)
        >>> gathered.sum().backward()
        >>> x.grad.shape, start
        (torch.Size([2, 3]), 0)
    """
    if world_size() == 1:
        return x, 0
    counts = torch.cat(_all_gather(torch.tensor([x.shape[0]], device=x.device))).tolist()
    gathered: Tensor = _GatherWithGradient.apply(x, counts)  # type: ignore[no-untyped-call]
    return gathered, sum(counts[: rank()])


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum over processes; no gradient.

    Example:
        >>> sum_over_processes(torch.tensor(3.0))
        tensor(3.)
    """
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone(memory_format=torch.contiguous_format)
    _count(reduced=total)
    dist.all_reduce(total)
    return total
