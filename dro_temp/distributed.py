"""What crosses processes. Alone, without a process group, every function is the identity."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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


def _row_counts(n: int, device: torch.device) -> list[int]:
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([n], device=device))
    return [int(count) for count in counts]


def _gather(x: Tensor, counts: list[int]) -> Tensor:
    # all_gather wants equal shapes: pad short ranks and cut the padding off again.
    padded = x.new_zeros((max(counts), *x.shape[1:]))
    padded[: x.shape[0]] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.start = sum(counts[: rank()])
        ctx.length = x.shape[0]
        return _gather(x, counts)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # Every rank's loss depends on every rank's rows: their gradients add up.
        # A copy: autograd may have handed the same gradient to somebody else.
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.length], None


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes in rank order, and where this process's rows start. No gradient.

    Processes may hold different numbers of rows.

    Example:
        >>> gather_rows(torch.tensor([1.0, 2.0]))
        (tensor([1., 2.]), 0)
    """
    if world_size() == 1:
        return x.detach(), 0
    counts = _row_counts(x.shape[0], x.device)
    return _gather(x.detach(), counts), sum(counts[: rank()])


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
    counts = _row_counts(x.shape[0], x.device)
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
    total = x.detach().clone()
    dist.all_reduce(total)
    return total
