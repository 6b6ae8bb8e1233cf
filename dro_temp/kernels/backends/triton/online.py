r"""Exponential sums in one read, before the largest score is known.

Each lane of a tile holds, for the scores that passed through it, their maximum M, the sum of $e^{(s - M) r}$ and that
of $(s - M) e^{(s - M) r}$. Lanes are reduced once, after the loop, so there is no barrier inside it. Rates are
$r = \log_2 e / \tau$, for exponentials in base two, which the hardware computes.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Maximum before the first score. Finite: -inf - (-inf) would be NaN. Below NOT_AN_OUTCOME by more than float32's
# digits.
LOWEST = tl.constexpr(-1e38)


@triton.jit  # type: ignore[untyped-decorator]
def empty_sums(shape: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of no scores."""
    return tl.full(shape, LOWEST, dtype), tl.full(shape, 0.0, dtype), tl.full(shape, 0.0, dtype)


@triton.jit  # type: ignore[untyped-decorator]
def zeros(size: tl.constexpr, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """A vector of zeros."""
    return tl.full([size], 0.0, dtype)


@triton.jit  # type: ignore[untyped-decorator]
def add_score(running_max, sum_exp, moment, scores, rate):  # type: ignore[no-untyped-def]
    """Sums with one more score in each lane; -inf adds nothing."""
    step = scores - running_max
    is_new_max = step > 0
    # One exponential serves both cases: the sum so far is rescaled, or the new score has a weight below one.
    weight = tl.exp2(-tl.abs(step) * rate)
    # -inf times its weight of zero would be NaN.
    finite_step = tl.maximum(step, LOWEST)
    moment = tl.where(is_new_max, (moment - step * sum_exp) * weight, moment + finite_step * weight)
    sum_exp = tl.where(is_new_max, sum_exp * weight + 1.0, sum_exp + weight)
    return tl.where(is_new_max, scores, running_max), sum_exp, moment


@triton.jit  # type: ignore[untyped-decorator]
def reduce_lanes(running_max, sum_exp, moment, rate, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of all lanes along an axis, relative to the largest score of all."""
    highest = tl.max(running_max, axis)
    step = running_max - tl.expand_dims(highest, axis)
    weight = tl.exp2(step * rate)
    return highest, tl.sum(sum_exp * weight, axis), tl.sum((moment + step * sum_exp) * weight, axis)
