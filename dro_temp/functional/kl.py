"""KL-constrained distributionally robust optimisation, row by row.

    max_{p: KL(p||U) <= rho} sum_j p_j h_j - tau_min KL(p||U)
        = min_{tau >= tau_min} F(tau) - tau_min rho,      F(tau) = tau (log g(tau) + rho),
    g(tau) = mean_j exp(h_j / tau).

Source: arXiv 2404.04575, sections 3 and 4.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dro_temp._checks import (
    check_bounds,
    check_count,
    check_floats,
    check_integers,
    check_radius,
    check_tensor,
    check_within,
    extremes,
    values_can_be_read,
)
from dro_temp._tensors import log_of_size
from dro_temp._typing import Mask, PerRow, RowIndex, Scores

# The margin of an outcome of score -inf. (-inf) / tau has the gradient 0 * inf; this has 0, and is far below any real
# margin.
IMPOSSIBLE = -1e30

#: The largest g / u in a gradient: far above the 1/gamma of any useful moving average, and small enough for the norm
#: of a float32 gradient to stay finite.
LARGEST_RATIO = 1e9


def margins(scores: Scores, target: RowIndex) -> Scores:
    r"""Score of every outcome minus the score of the row's target, $h_{ij} = s_{ij} - s_{i t_i}$.

    Args:
        scores: any real scores.
        target: column of each row's target.

    Returns:
        Margins; zero at the target. Both scores of a margin carry gradient. A score of -inf (an outcome that
        cannot happen) gives a margin of -1e30: it stays an outcome of probability zero, and h / tau keeps a
        finite gradient.

    Example:
        >>> margins(torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        tensor([[-2.,  0.]])
    """
    return (scores - scores.gather(1, target[:, None])).clamp(min=IMPOSSIBLE)


def expected_margins(scores: Scores, distribution: Scores) -> Scores:
    r"""Score of every outcome minus the expected score of the target, $h_{ij} = s_{ij} - \sum_k q_{ik} s_{ik}$.

    With them the log-sum-exp of the margins is the cross-entropy with a target distribution q, as it is that with a
    single target where q is 1 there.

    Args:
        scores: any real scores.
        distribution: q, probability that each outcome is the row's target; rows that sum to one.

    Returns:
        Margins, as `margins`. An outcome of probability zero adds nothing, also where its score is -inf.

    Example:
        >>> expected_margins(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([[-1.,  1.]])
    """
    q = distribution.to(scores.dtype)
    # Products of 0 and -inf are NaN, and so are their gradients.
    expected = (scores.masked_fill(q == 0, 0.0) * q).sum(1, keepdim=True)
    return (scores - expected).clamp(min=IMPOSSIBLE)


def smoothed_distribution(target: RowIndex, outcomes: int, smoothing: float) -> Scores:
    r"""$q_{ij} = (1 - \epsilon)\, 1[j = t_i] + \epsilon / m$: label smoothing.

    Args:
        target: column of each row's target.
        outcomes: m.
        smoothing: $\epsilon$, the share that is spread evenly over all outcomes, in [0, 1].

    Returns:
        Distributions in float32, rows that sum to one.

    Example:
        >>> smoothed_distribution(torch.tensor([1]), 4, 0.2)
        tensor([[0.0500, 0.8500, 0.0500, 0.0500]])

    Source: arXiv 1512.00567, section 7.
    """
    check_integers("target", target)
    outcomes = check_count("outcomes", outcomes, minimum=0)
    check_within("smoothing", smoothing, 0.0, 1.0)
    spread = torch.full((len(target), outcomes), smoothing / max(outcomes, 1), device=target.device)
    return spread.scatter_add_(1, target.long()[:, None], torch.full_like(spread[:, :1], 1.0 - smoothing))


def log_mean_exp(x: Scores, mask: Mask | None = None) -> PerRow:
    r"""$\log \frac{1}{m} \sum_j e^{x_j}$ over the support of each row, without overflow.

    Args:
        x: exponents.
        mask: True where an outcome belongs to the row's support; everything if None. Masked entries receive
            exactly zero gradient.

    Returns:
        The log of the mean; -inf, with zero gradient, for a row whose support is empty.

    Example:
        >>> log_mean_exp(torch.tensor([[0.0, 0.0, 1e4]]), torch.tensor([[True, True, False]]))
        tensor([0.])
    """
    if mask is None:
        if x.shape[1] == 0:
            return x.new_full((x.shape[0],), -math.inf)
        return x.logsumexp(1) - log_of_size(x.shape[1], x)
    count = mask.sum(1)
    empty = count == 0
    # The gradient of logsumexp is NaN for a row of -inf: pass finite numbers, and drop the result.
    inside = x.masked_fill(~(mask | empty[:, None]), -math.inf)
    log_sum = inside.logsumexp(1) if x.shape[1] else x.new_zeros(x.shape[0])
    return (log_sum - count.clamp(min=1).to(x.dtype).log()).masked_fill(empty, -math.inf)


def compositional_log_mean(log_g: PerRow, log_u: PerRow | None = None) -> PerRow:
    r"""The estimate $\log u$ as a value, with the compositional gradient $\nabla g / u$.

    `log_u + (r - stop(r))` with `r = exp(log_g - log_u)`, clipped to `LARGEST_RATIO` in the gradient. Where either is
    infinite there is no gradient.

    Args:
        log_g: log of the minibatch mean, with gradient.
        log_u: estimate of the log of the population mean; no gradient flows to it. None: `log_g` is exact.

    Example:
        >>> log_g = torch.zeros(1, requires_grad=True)
        >>> log_mean = compositional_log_mean(log_g, torch.tensor([0.5]).log())
        >>> log_mean.detach(), torch.autograd.grad(log_mean.sum(), log_g)[0]
        (tensor([-0.6931]), tensor([2.]))

    Source: arXiv 2202.12387 (SogCLR), in the log domain.
    """
    if log_u is None:
        return log_g
    log_u = log_u.detach()
    exponent = (log_g - log_u).masked_fill(log_g.isinf() | log_u.isinf(), 0.0)
    excess = (exponent.detach() - math.log(LARGEST_RATIO)).clamp(min=0.0)
    ratio = (exponent - excess).exp()
    # In this order the value is log_u to the last digit, however large the ratio.
    return log_u + (ratio - ratio.detach())


def dual_value(log_g: PerRow, tau: PerRow, *, rho: float, log_u: PerRow | None = None) -> PerRow:
    r"""The dual $F = \tau(\log g + \rho)$ from $\log g$, or from an estimate of it.

    With `log_u`, value and gradient of log g are those of `compositional_log_mean`. Since `u` contains `g` with a
    weight of at least gamma, r <= 1/gamma (k/gamma for a sample that is k times in the batch, whose copies share `g`).
    Where that weight may be tiny, as with `Scent`, the clipped ratio keeps the gradient and its norm finite.

    Args:
        log_g: log of the minibatch mean, with gradient.
        tau: temperatures, > 0.
        rho: radius of the KL ball in nats, >= 0.
        log_u: see `compositional_log_mean`.

    Example:
        >>> dual_value(torch.zeros(2), torch.ones(2), rho=0.5)
        tensor([0.5000, 0.5000])

    Source: arXiv 2202.12387 (SogCLR), in the log domain.
    """
    return tau * ((log_g if log_u is None else compositional_log_mean(log_g, log_u)) + rho)


def kl_dual(
    margins: Scores, tau: PerRow, *, rho: float, mask: Mask | None = None, log_u: PerRow | None = None
) -> PerRow:
    r"""The dual of KL-constrained DRO, $F(\tau) = \tau \left(\log \frac1m \sum_j e^{h_j/\tau} + \rho\right)$.

    For every tau > 0 it bounds the constrained maximum from above (up to the constant -tau_min rho), it is
    convex in tau, and dF/dtau = rho - KL(p||U) at p = softmax(h / tau).

    Args:
        margins: score minus target score.
        tau: temperature of each row, > 0, in units of the scores.
        rho: radius of the KL ball in nats, 0 <= rho < log m.
        mask: True inside the support.
        log_u: estimate of log g, see `dual_value`.

    Example:
        >>> kl_dual(torch.zeros(1, 4), torch.ones(1), rho=1.0)
        tensor([1.])

    Source: arXiv 2404.04575, equation 6.
    """
    _check_rows(margins, tau)
    check_radius(rho)
    return dual_value(log_mean_exp(margins / tau[:, None], mask), tau, rho=rho, log_u=log_u)


def kl_weights(margins: Scores, tau: PerRow, mask: Mask | None = None) -> Scores:
    r"""The worst-case distribution $p_j = e^{h_j/\tau} / \sum_k e^{h_k/\tau}$ on the support; zero outside.

    It is also dF/dh: the gradient of the robust loss has no 1/tau factor.

    Example:
        >>> kl_weights(torch.zeros(1, 2), torch.ones(1))
        tensor([[0.5000, 0.5000]])
    """
    _check_rows(margins, tau)
    return _weights(margins, tau, mask)


def _weights(margins: Scores, tau: PerRow, mask: Mask | None) -> Scores:
    z = margins / tau[:, None]
    if mask is None:
        return z.softmax(1)
    empty = ~mask.any(1, keepdim=True)
    return z.masked_fill(~(mask | empty), -math.inf).softmax(1).masked_fill(~mask, 0.0)


def kl_divergence(margins: Scores, tau: PerRow, mask: Mask | None = None) -> PerRow:
    r"""$\mathrm{KL}(p\|U)$ of the worst-case distribution: decreasing in tau, between 0 and log m.

    Example:
        >>> kl_divergence(torch.tensor([[0.0, -1e4]]), torch.ones(1))
        tensor([0.6931])
    """
    _check_rows(margins, tau)
    return _kl_and_slope(margins, tau, mask)[0]


def _check_rows(margins: Scores, tau: PerRow) -> None:
    check_floats("margins", margins)
    check_tensor("tau", tau)
    if margins.dim() != 2 or tau.shape != margins.shape[:1]:
        raise ValueError(
            f"expected margins of shape [n, m] and tau of shape [n], received {list(margins.shape)} and "
            f"{list(tau.shape)}. Pass one row of margins for each temperature: tau.expand(len(margins)), say."
        )
    if values_can_be_read(tau):
        low, high = extremes(tau)
        if not (low > 0.0 and high < math.inf):
            raise ValueError(
                f"expected temperatures that are finite and > 0, received some from {low} to {high}. Pass "
                "tau.clamp(min=0.01), or what a predictor returns."
            )


def _kl_and_slope(margins: Scores, tau: PerRow, mask: Mask | None) -> tuple[PerRow, PerRow]:
    """KL(p||U) and -dKL/dlog(tau) = Var_p(h / tau) of p = softmax(h / tau), [n] each."""
    p = _weights(margins, tau, mask)
    inside = margins if mask is None else margins.masked_fill(~mask, -math.inf)
    # Relative to the maximum, so that the difference below keeps its digits when h / tau is large.
    row_max = inside.amax(1, keepdim=True)
    row_max = row_max.masked_fill(row_max.isneginf(), 0.0)
    z = (inside - row_max) / tau[:, None]
    size = torch.full_like(tau, z.shape[1]) if mask is None else mask.sum(1).to(tau.dtype)
    z_inside = z.masked_fill(p == 0.0, 0.0)  # p z -> 0 where p underflows, also for z = -inf
    mean = (p * z_inside).sum(1)
    kl = (mean - (z.logsumexp(1) - size.log())).masked_fill(size == 0, 0.0)
    variance = (p * (z_inside - mean[:, None]).square()).sum(1)
    return kl, variance


@torch.no_grad()
def optimal_tau(
    margins: Scores,
    *,
    rho: float,
    tau_min: float,
    tau_max: float,
    mask: Mask | None = None,
    iterations: int = 40,
) -> PerRow:
    r"""The exact temperature of each row, $\arg\min_{\tau_{\min} \le \tau \le \tau_{\max}} F(\tau)$.

    KL(p||U) decreases in tau, so the minimiser is the root of KL = rho, or a bound: Newton's method in log tau, inside
    a bracket, with a fixed number of iterations. No gradient flows through the solution (none is needed, since
    dF/dtau = 0 there).

    Args:
        margins: score minus target score.
        rho: radius of the KL ball in nats.
        tau_min: lower bound, > 0.
        tau_max: upper bound, > tau_min.
        mask: True inside the support.
        iterations: Newton or bisection steps; 40 leave an error in F at rounding level. The temperature itself
            is as sharp as F's minimum: to 1e-8 in float64 and 1e-3 in float32 for ordinary radii, less within
            1e-6 of 0 and of log m, where F is flat.

    Example:
        >>> h = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
        >>> tau = optimal_tau(h, rho=0.5, tau_min=0.01, tau_max=10.0)
        >>> kl_divergence(h, tau)
        tensor([0.5000], dtype=torch.float64)
    """
    check_floats("margins", margins)
    check_bounds(tau_min, tau_max)
    check_radius(rho)
    check_count("iterations", iterations)
    low = margins.new_full((margins.shape[0],), math.log(tau_min))
    high = margins.new_full((margins.shape[0],), math.log(tau_max))
    below_floor = _kl_and_slope(margins, low.exp(), mask)[0] <= rho
    above_ceiling = _kl_and_slope(margins, high.exp(), mask)[0] >= rho
    log_tau = log_tau_at(rho, lambda tau, _: _kl_and_slope(margins, tau, mask), low, high, iterations)
    tau: Tensor = log_tau.exp().clamp(tau_min, tau_max)
    tau = tau.masked_fill(above_ceiling, tau_max)
    return tau.masked_fill(below_floor & ~above_ceiling, tau_min)


def log_tau_at(
    rho: float,
    kl_and_slope: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]],
    low: Tensor,
    high: Tensor,
    iterations: int,
    *,
    start: Tensor | None = None,
    tolerance: float | None = None,
) -> Tensor:
    """The root of KL(tau) = rho in log tau between `low` and `high`; the nearer of the two if there is none.

    Newton's method inside a bracket, which at least halves at every step that would leave it. Without a tolerance the
    number of iterations is fixed: there is no data-dependent control flow, so that it compiles. With one, rows that
    have converged drop out, which takes a fraction of the time.

    Args:
        rho: the radius.
        kl_and_slope: KL, decreasing in tau, and -dKL/dlog(tau), from tau and the numbers of its rows (None: all).
        low: log of the lowest temperature, [n] or one number.
        high: log of the highest.
        iterations: most steps.
        start: where to start; the middle if None.
        tolerance: a step of this size in log tau is the last of its row; None: take all steps.
    """
    x = 0.5 * (low + high) if start is None else start
    result, rows = x.clone(), None
    for _ in range(iterations):
        kl, slope = kl_and_slope(x.exp(), rows)
        excess = kl - rho  # positive: tau is too small
        low = torch.where(excess > 0, x, low)
        high = torch.where(excess > 0, high, x)
        newton = x + excess / slope.clamp(min=torch.finfo(x.dtype).tiny)
        inside = (newton > low) & (newton < high)
        new = torch.where(inside, newton, 0.5 * (low + high))
        if tolerance is None:
            x = result = new
            continue
        result = new.clone() if rows is None else result.index_copy(0, rows, new)
        moving = ((new - x).abs() > tolerance).nonzero()[:, 0]
        if len(moving) == 0:
            break
        rows = moving if rows is None else rows[moving]
        x, low, high = new[moving], low[moving], high[moving]
    return result
