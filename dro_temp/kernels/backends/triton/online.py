r"""Exponential sums that are built up in one read, before the largest score is known.

Each lane of a tile keeps, for the scores that passed through it, the largest one, the sum of
$e^{(s - \mathrm{top}) r}$ and that of $(s - \mathrm{top}) e^{(s - \mathrm{top}) r}$. Lanes meet once, at the end: no
barrier inside the loop. Rates are $\log_2 e / \tau$, for exponentials in base two, which the hardware computes.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Before the first score. Finite: -inf - (-inf) would be NaN. Below NOT_AN_OUTCOME by more than float32's digits.
LOWEST = tl.constexpr(-1e38)


@triton.jit  # type: ignore[untyped-decorator]
def start(shape: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of nothing."""
    return tl.full(shape, LOWEST, dtype), tl.full(shape, 0.0, dtype), tl.full(shape, 0.0, dtype)


@triton.jit  # type: ignore[untyped-decorator]
def absorb(top, total, moment, scores, rate):  # type: ignore[no-untyped-def]
    """Sums with one more score in each lane; -inf adds nothing."""
    step = scores - top
    rises = step > 0
    # One exponential: either what was summed so far shrinks, or the new score counts less than one.
    weight = tl.exp2(-tl.abs(step) * rate)
    # -inf times its weight of zero would be NaN.
    finite_step = tl.maximum(step, LOWEST)
    moment = tl.where(rises, (moment - step * total) * weight, moment + finite_step * weight)
    total = tl.where(rises, total * weight + 1.0, total + weight)
    return tl.where(rises, scores, top), total, moment


@triton.jit  # type: ignore[untyped-decorator]
def meet(top, total, moment, rate, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of all lanes along an axis, relative to the largest score of all."""
    highest = tl.max(top, axis)
    step = top - tl.expand_dims(highest, axis)
    weight = tl.exp2(step * rate)
    return highest, tl.sum(total * weight, axis), tl.sum((moment + step * total) * weight, axis)
