"""A TempNet's readout and bounds on a GPU: one kernel each way, where plain operations take a dozen launches.

The network of a small batch waits for its launches. A second derivative goes through plain operations.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dro_temp import functional as F
from dro_temp._typing import Features, PerRow


def _kernels() -> Any:
    """Their module imports Triton."""
    from dro_temp.kernels.backends.triton import readout

    return readout


def pooled_readout(
    similarities: Features, pooled: Features, log_sharpness: Tensor, weight: Tensor, bias: Tensor
) -> PerRow:
    r"""$w^\top [(\mathrm{softmax}(v / e^\varphi) - \frac1K) \odot y] + b$ of each row, by plain operations.

    Args:
        similarities: [n K], v.
        pooled: [n K], y.
        log_sharpness: [1], phi.
        weight: [1 K], w.
        bias: [1], b.
    """
    attention = (similarities / log_sharpness.exp()).softmax(1)
    raw: PerRow = torch.nn.functional.linear(
        (attention - 1.0 / weight.shape[1]) * pooled, weight, bias
    ).squeeze(1)
    return raw


def takes(similarities: Features, *others: Tensor) -> bool:
    """Whether the kernel reads these arguments of `pooled_readout`: float32, in rows that fit."""
    low = any(x.dtype != torch.float32 for x in (similarities, *others))
    return not low and similarities.shape[1] <= _kernels().WIDEST


def _by_plain_operations(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], upstream: Tensor
) -> Any:
    """Gradients that can be differentiated once more."""
    with torch.enable_grad():
        inputs = tuple(
            x.view_as(x) for x in inputs
        )  # one tensor may be two of them, each with its own gradient
        wanted = tuple(x for x in inputs if x.requires_grad)
        found = torch.autograd.grad(function(*inputs), wanted, upstream, create_graph=True)
    gradients = iter(found)
    return [next(gradients) if x.requires_grad else None for x in inputs]


class FusedPooledReadout(torch.autograd.Function):
    """`pooled_readout` by a kernel."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> PerRow:
        """One launch."""
        ctx.save_for_backward(*inputs)
        raw: PerRow = _kernels().pooled_readout(*inputs)
        return raw

    @staticmethod
    def backward(ctx: Any, upstream: PerRow) -> Any:
        """Two launches."""
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(_by_plain_operations(pooled_readout, inputs, upstream))
        return _kernels().pooled_gradients(*inputs[:4], upstream)


class FusedBounds(torch.autograd.Function):
    """`functional.sigmoid_between` by a kernel."""

    @staticmethod
    def forward(ctx: Any, raw: PerRow, lower: float, upper: float) -> PerRow:
        """One launch."""
        ctx.save_for_backward(raw)
        ctx.bounds = lower, upper
        tau: PerRow = _kernels().bounded(raw, lower, upper)
        return tau

    @staticmethod
    def backward(ctx: Any, upstream: PerRow) -> tuple[Tensor | None, None, None]:
        """One launch."""
        (raw,), (lower, upper) = ctx.saved_tensors, ctx.bounds
        if torch.is_grad_enabled():
            return (
                *_by_plain_operations(lambda x: F.sigmoid_between(x, lower, upper), (raw,), upstream),
                None,
                None,
            )
        return _kernels().bounded_gradient(raw, upstream, lower, upper), None, None
