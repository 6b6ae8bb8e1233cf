r"""Rows of scores under their own temperatures, [n m]: sums in a first read, gradients over the scores in a second.

With $p_i = \mathrm{softmax}(s_i / \tau_i)$, one program per row computes

    log_g    = log 1/m sum_j e^((s_ij - s_it) / tau_i)
    mean     = E_p[s_i],   variance = Var_p[s_i]

and, for coefficients u = dL/dlog_g, b = dL/dmean and c = dL/ds_it of the row,

    G_ij = p_ij (u / tau + b + b (s_ij - mean) / tau) - 1[j = t] (u / tau - c)

the gradient with respect to the scores, over the scores themselves or beside them in the precision of the products that
follow. With the target's term inside and the row's share multiplied in, those products need nothing before or after
them. If u is known before the scores are (`known`), one launch does both reads.

A soft cap and a bias are applied as the scores are read, so that no pass over [n m] is spent on them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dro_temp._typing import PerRow, Scores
from dro_temp.kernels.backends.protocol import Coefficients, RowBlock, TiltedRows
from dro_temp.kernels.backends.triton.launch import launch, pointers_to_groups, row_stride, row_tile, vector
from dro_temp.kernels.backends.triton.online import LOG2E, LOWEST, are_excluded, zeros

#: How a soft cap meets the scores: there is none; to be applied; applied already, its slope is still to be.
NO_CAP, RAW, CAPPED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
#: Scores this far below the maximum weigh nothing; their square is still finite.
FAR = tl.constexpr(1e18)
#: Numbers that one program scales.
SCALE_TILE = 8192


@triton.jit  # type: ignore[untyped-decorator]
def capped(s, cap):  # type: ignore[no-untyped-def]
    """`cap * tanh(s / cap)`; the exponential may overflow to infinity, which gives `cap`."""
    return cap * (1.0 - 2.0 / (1.0 + tl.exp2(s * (2.0 * LOG2E / cap))))


@triton.jit  # type: ignore[untyped-decorator]
def excluded_columns(column_groups, group, at, m, target):  # type: ignore[no-untyped-def]
    """Where groups exclude a column from a row."""
    other = tl.load(column_groups + at, mask=at < m, other=-3)
    return are_excluded(group, other) & (at != target)


@triton.jit  # type: ignore[untyped-decorator]
def load_tile(  # type: ignore[no-untyped-def]
    scores,
    bias,
    at,
    m,
    target,
    cap,
    column_groups,
    group,
    HAS_BIAS: tl.constexpr,  # noqa: N803
    CAP: tl.constexpr,  # noqa: N803
    WITH_TARGET: tl.constexpr,  # noqa: N803
    HAS_GROUPS: tl.constexpr,  # noqa: N803
    KEEP: tl.constexpr,  # noqa: N803
):
    """Scores of a row at some columns, as the softmax sees them: -inf outside the support."""
    inside = at < m
    # The second read should find the row in the cache.
    policy: tl.constexpr = "evict_last" if KEEP else "evict_first"
    s = tl.load(scores + at, mask=inside, other=-float("inf"), eviction_policy=policy).to(
        bias.dtype.element_ty
    )
    if HAS_BIAS:
        s += tl.load(bias + at, mask=inside, other=0.0)
    if CAP == RAW:
        s = capped(s, cap)
    if not WITH_TARGET:
        inside = inside & (at != target)
    if HAS_GROUPS:
        inside = inside & (excluded_columns(column_groups, group, at, m, target) == 0)
    return tl.where(inside, s, -float("inf"))


@triton.jit  # type: ignore[untyped-decorator]
def tilted_rows_kernel(  # type: ignore[no-untyped-def]
    scores,  # [n m], rows `stride` apart
    bias,  # [m] in the precision of the sums, or anything of it
    tau,  # [n]
    target,  # [n]
    row_maxima,  # [n]
    sums_exp,  # [n]
    means,  # [n]
    variances,  # [n]
    target_scores,  # [n]
    log_gs,  # [n]
    grad_log_g,  # [n], u
    grad_mean,  # [n], b
    grad_target,  # [n], c
    gradients,  # [n m], rows `gradient_stride` apart
    row_groups,  # [n]
    column_groups,  # [m]
    m,
    stride,
    gradient_stride,
    log_m,
    cap,
    HAS_BIAS: tl.constexpr,  # noqa: N803
    CAP: tl.constexpr,  # noqa: N803
    WITH_TARGET: tl.constexpr,  # noqa: N803
    HAS_GROUPS: tl.constexpr,  # noqa: N803
    SUMS: tl.constexpr,  # noqa: N803
    VARIANCE: tl.constexpr,  # noqa: N803
    WRITES: tl.constexpr,  # noqa: N803
    OF_MEAN: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    scores += row * stride
    dtype = tau.dtype.element_ty
    temperature = tl.load(tau + row)
    rate = LOG2E / temperature
    own = tl.load(target + row)
    group = tl.load(row_groups + row) if HAS_GROUPS else own
    lanes = tl.arange(0, TILE)
    if SUMS:
        highest = tl.full([], LOWEST, dtype)
        sum_exp, moment, square = zeros(TILE, dtype), zeros(TILE, dtype), zeros(TILE, dtype)
        for first in range(0, m, TILE):
            s = load_tile(
                scores,
                bias,
                first + lanes,
                m,
                own,
                cap,
                column_groups,
                group,
                HAS_BIAS,
                CAP,
                WITH_TARGET,
                HAS_GROUPS,
                WRITES,
            )
            top = tl.maximum(highest, tl.max(s, 0))
            # The sums move to a new maximum; a branch for the usual case, that it stays, costs more than it saves.
            moved = highest - top
            decay = tl.exp2(moved * rate)
            step = s - top
            weight = tl.exp2(step * rate)
            if VARIANCE:
                near, far = tl.maximum(step, -FAR), tl.maximum(moved, -FAR)
                square = (square + far * (2.0 * moment + far * sum_exp)) * decay + weight * near * near
            # -inf times its weight of zero would be NaN.
            moment = (moment + moved * sum_exp) * decay + weight * tl.maximum(step, LOWEST)
            sum_exp = sum_exp * decay + weight
            highest = top
        total, moment = tl.sum(sum_exp, 0), tl.sum(moment, 0)
        if VARIANCE:
            square = tl.sum(square, 0)
        if HAS_GROUPS:  # of a row without outcomes the sums mean nothing, and are finite
            none = total == 0.0
            total, highest = tl.where(none, 1.0, total), tl.where(none, 0.0, highest)
            moment = tl.where(none, 0.0, moment)
            if VARIANCE:
                square = tl.where(none, 0.0, square)
        excess = moment / total
        mean = highest + excess
        target_score = tl.load(scores + own).to(dtype)
        if HAS_BIAS:
            target_score += tl.load(bias + own)
        if CAP == RAW:
            target_score = capped(target_score, cap)
        tl.store(row_maxima + row, highest)
        tl.store(sums_exp + row, total)
        tl.store(means + row, mean)
        tl.store(target_scores + row, target_score)
        tl.store(log_gs + row, (highest - target_score) / temperature + tl.log(total) - log_m)
        if VARIANCE:
            tl.store(variances + row, tl.maximum(square / total - excess * excess, 0.0))
    else:
        highest, total = tl.load(row_maxima + row), tl.load(sums_exp + row)
        mean = tl.load(means + row)
    if WRITES:
        gradients += row * gradient_stride
        of_softmax = tl.load(grad_log_g + row) / temperature
        of_target = of_softmax
        of_distance = of_softmax * 0.0
        if OF_MEAN:
            of_target -= tl.load(grad_target + row)
            of_mean = tl.load(grad_mean + row)
            of_softmax += of_mean
            of_distance = of_mean / temperature / total
        of_softmax /= total
        for first in range(0, m, TILE):
            at = first + lanes
            s = load_tile(
                scores,
                bias,
                at,
                m,
                own,
                cap,
                column_groups,
                group,
                HAS_BIAS,
                CAP,
                WITH_TARGET,
                HAS_GROUPS,
                False,
            )
            g = tl.exp2((s - highest) * rate)
            if (
                OF_MEAN
            ):  # each factor meets the weight of zero first: with an outcome at -inf, 0 * inf would be NaN
                g = g * of_softmax + g * tl.maximum(s - mean, LOWEST) * of_distance
            else:
                g *= of_softmax
            g -= tl.where(at == own, of_target, 0.0)
            if CAP != NO_CAP:
                if not WITH_TARGET:  # its own score was left out of the softmax
                    s = load_tile(
                        scores, bias, at, m, own, cap, column_groups, group, HAS_BIAS, CAP, True, False, False
                    )
                s = s / cap
                g *= 1.0 - s * s
            if HAS_GROUPS:  # the slope of a cap at -inf is none
                g = tl.where(excluded_columns(column_groups, group, at, m, own), 0.0, g)
            tl.store(gradients + at, g.to(gradients.dtype.element_ty), mask=at < m)


@triton.jit  # type: ignore[untyped-decorator]
def scale_kernel(x, factor, size, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """A tile of a vector times a number; a factor of one, the usual one, touches nothing."""
    number = tl.load(factor)
    if number != 1.0:
        at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
        tl.store(x + at, (tl.load(x + at, mask=at < size) * number).to(x.dtype.element_ty), mask=at < size)


def scale_(x: Tensor, factor: Tensor) -> Tensor:
    """See `FusedRows.scale_`."""
    launch(
        scale_kernel, triton.cdiv(x.numel(), SCALE_TILE), x, factor, x.numel(), TILE=SCALE_TILE, num_warps=8
    )
    return x


def tilt_rows(
    block: RowBlock,
    tau: PerRow,
    *,
    variance: bool = False,
    known: Coefficients | None = None,
    out: Scores | None = None,
) -> TiltedRows:
    """See `FusedRows.tilt_rows`."""
    log_g, target_score, mean, row_max, sum_exp = (torch.empty_like(tau) for _ in range(5))
    of_variance = torch.empty_like(tau) if variance else None
    rows = TiltedRows(log_g, target_score, mean, row_max, sum_exp, of_variance)
    _launch(block, vector(tau, tau), rows, known, out, sums=True)
    return rows


def write_gradient(
    block: RowBlock, tau: PerRow, rows: TiltedRows, known: Coefficients, out: Scores | None = None
) -> None:
    """See `FusedRows.write_gradient`."""
    _launch(block, vector(tau, tau), rows, known, out, sums=False)


def _launch(
    block: RowBlock,
    tau: PerRow,
    rows: TiltedRows,
    known: Coefficients | None,
    out: Scores | None,
    *,
    sums: bool,
) -> None:
    n, m = block.scores.shape
    out = block.scores if out is None else out
    cap = NO_CAP if block.cap is None else CAPPED if block.is_capped else RAW
    # What a program does not read is any pointer to the precision of the sums.
    u, of_mean, of_target = tau, tau, tau
    if known is not None:
        u = vector(known.log_g, tau)
        if known.mean is not None and known.target_score is not None:
            of_mean, of_target = vector(known.mean, tau), vector(known.target_score, tau)
    launch(
        tilted_rows_kernel,
        n,
        block.scores,
        tau if block.bias is None else block.bias,
        tau,
        block.target.contiguous(),
        rows.row_max,
        rows.sum_exp,
        rows.mean,
        tau if rows.variance is None else rows.variance,
        rows.target_score,
        rows.log_g,
        u,
        of_mean,
        of_target,
        out,
        *pointers_to_groups(block.groups, tau),
        m,
        row_stride(block.scores),
        row_stride(out),
        block.log_size,
        1.0 if block.cap is None else block.cap,
        HAS_BIAS=block.bias is not None,
        CAP=cap.value,
        WITH_TARGET=block.target_in_support,
        HAS_GROUPS=block.groups is not None,
        SUMS=sums,
        VARIANCE=rows.variance is not None and sums,
        WRITES=known is not None,
        OF_MEAN=known is not None and known.mean is not None,
        **row_tile(m),
    )
