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


#: `functional.LEFT_OUT`: a row or column that takes part in nothing.
LEFT_OUT = tl.constexpr(-2)


@triton.jit  # type: ignore[untyped-decorator]
def are_excluded(row_groups, column_groups):  # type: ignore[no-untyped-def]
    """Where groups exclude a score, its target included: two numbers are equal, or either is left out."""
    left_out = (row_groups == LEFT_OUT) | (column_groups == LEFT_OUT)
    return (row_groups == column_groups) | left_out


@triton.jit  # type: ignore[untyped-decorator]
def excluded_tile(row_groups, column_groups, rows, columns, n, m):  # type: ignore[no-untyped-def]
    """`are_excluded` of some rows, [ROWS 1], and columns, [1 COLUMNS]."""
    of_rows = tl.load(row_groups + rows, mask=rows < n, other=-1)
    of_columns = tl.load(column_groups + columns, mask=columns < m, other=-3)
    return are_excluded(of_rows[:, None], of_columns[None, :])


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
