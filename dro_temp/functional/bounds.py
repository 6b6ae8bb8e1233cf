"""Two ways to keep a number inside an interval, and the inverse of the smooth one."""

import math
from typing import Any

import torch
from torch import Tensor

from dro_temp._checks import check_inside, check_interval, check_positive


def sigmoid_between(raw: Tensor, lower: float, upper: float) -> Tensor:
    r"""A smooth map into an interval, never outside it even after rounding.

    $$\mathrm{lower} + (\mathrm{upper} - \mathrm{lower})\,\sigma(\mathrm{raw})$$

    Example:
        >>> sigmoid_between(torch.tensor([0.0, 1e6]), 1.0, 3.0)
        tensor([2., 3.])
    """
    if not (type(lower) is type(upper) is float and lower <= upper):
        check_interval(lower, upper)
    return (lower + (upper - lower) * raw.sigmoid()).clamp(lower, upper)


def logit_between(tau: float, lower: float, upper: float) -> float:
    r"""Inverse of `sigmoid_between`: the raw number whose bounded value is `tau`.

    Example:
        >>> logit_between(2.0, 1.0, 3.0)
        0.0
    """
    check_interval(lower, upper)
    check_inside("tau", tau, lower, upper)
    share = (tau - lower) / (upper - lower)
    return math.log(share) - math.log1p(-share)


class _ClipBetween(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, lower: float, upper: float) -> Tensor:
        ctx.save_for_backward(raw)
        ctx.interval = (lower, upper)
        return raw.clamp(lower, upper)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (raw,), (grad,) = ctx.saved_tensors, grads
        lower, upper = ctx.interval
        # A descent step moves against the gradient: keep it unless it points out of the interval.
        outward = ((raw >= upper) & (grad < 0)) | ((raw <= lower) & (grad > 0))
        return grad.masked_fill(outward, 0.0), None, None


def clip_between(raw: Tensor, lower: float, upper: float) -> Tensor:
    """Clip to an interval, with the gradient of a projection.

    `torch.clamp` has zero gradient outside the interval, so a parameter that once stepped out never returns.
    Here a gradient that points back inside passes; only one that points further out is stopped.

    Example:
        >>> x = torch.tensor([5.0], requires_grad=True)
        >>> clip_between(x, 0.0, 1.0).sum().backward()
        >>> x.grad
        tensor([1.])
    """
    check_interval(lower, upper)
    clipped: Tensor = _ClipBetween.apply(raw, lower, upper)  # type: ignore[no-untyped-call]
    return clipped


def exp_between(log_x: Tensor, lower: float, upper: float) -> Tensor:
    r"""$e^x$ clipped to an interval of positive numbers, with the gradient of a projection in the log domain.

    Example:
        >>> exp_between(torch.tensor([0.0, 3.0]), 0.5, 2.0)
        tensor([1., 2.])
    """
    check_interval(lower, upper)
    check_positive("lower", lower)
    log_x = clip_between(log_x, math.log(lower), math.log(upper))
    # exp may round past a bound; torch.clamp would stop the gradient on it.
    return clip_between(log_x.exp(), lower, upper)
