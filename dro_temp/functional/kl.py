"""KL-constrained distributionally robust optimisation, row by row.

    max_{p: KL(p||U) <= rho} sum_j p_j h_j - tau_min KL(p||U)
        = min_{tau >= tau_min} F(tau) - tau_min rho,      F(tau) = tau (log g(tau) + rho),
    g(tau) = mean_j exp(h_j / tau).

Source: arXiv 2404.04575, sections 3 and 4.
"""

import math

import torch
from torch import Tensor

from dro_temp._checks import (
    check_bounds,
    check_count,
    check_floats,
    check_radius,
    check_tensor,
    extremes,
    values_can_be_read,
)
from dro_temp._tensors import log_of_size
from dro_temp._typing import Mask, PerRow, RowIndex, Scores
from dro_temp.functional._newton import log_tau_at

IMPOSSIBLE = (
    -1e30
)  # (-inf) / tau has the gradient 0 * inf; this has 0, and no margin of real scores is near it


#: The most that g / u counts for in a gradient: far above the 1/gamma of any moving average that is of use, and small
#: enough for the norm of a gradient in float32 to stay finite.
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
        distribution: q, probability of each outcome to be the row's target; rows that sum to one.

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
    # An all -inf row would make logsumexp's gradient NaN: let it see finite numbers, then drop the result.
    inside = x.masked_fill(~(mask | empty[:, None]), -math.inf)
    log_sum = inside.logsumexp(1) if x.shape[1] else x.new_zeros(x.shape[0])
    return (log_sum - count.clamp(min=1).to(x.dtype).log()).masked_fill(empty, -math.inf)


def compositional_log_mean(log_g: PerRow, log_u: PerRow | None = None) -> PerRow:
    r"""The held estimate $\log u$ as a value, with the compositional gradient $\nabla g / u$.

    `log_u + (r - stop(r))` with `r = exp(log_g - log_u)`, of which the gradient takes at most `LARGEST_RATIO`. Where
    either is infinite there is no gradient.

    Args:
        log_g: log of the minibatch mean, with gradient.
        log_u: held estimate of the log of the population mean; no gradient flows to it. None: `log_g` is exact.

    Returns:
        One value per row.

    Example:
        >>> log_g = torch.zeros(1, requires_grad=True)
        >>> log_mean = compositional_log_mean(log_g, torch.tensor([0.5]).log())
        >>> log_mean.detach(), torch.autograd.grad(log_mean.sum(), log_g)[0]
        (tensor([-0.6931]), tensor([2.]))

    Source: arXiv 2202.12387 (SogCLR), in the log domain.
    """
    if log_u is None:
        return log_g
    held = log_u.detach()
    exponent = (log_g - held).masked_fill(log_g.isinf() | held.isinf(), 0.0)
    excess = (exponent.detach() - math.log(LARGEST_RATIO)).clamp(min=0.0)
    ratio = (exponent - excess).exp()
    # In this order the value is the held one to the last digit, however large the ratio.
    return held + (ratio - ratio.detach())


def dual_value(log_g: PerRow, tau: PerRow, *, rho: float, log_u: PerRow | None = None) -> PerRow:
    r"""The dual $F = \tau(\log g + \rho)$ from $\log g$, with an optional held estimate of $\log g$.

    With `log_u`, the value is $\tau(\log u + \rho)$ and the gradient is the compositional one,
    $\nabla \log g$ replaced by $\nabla g / u$: `tau * (log_u + r - stop(r) + rho)`, `r = exp(log_g - log_u)`.
    Since `u` holds at least a share gamma of `g`, `r <= 1/gamma` (k/gamma for a sample that is k times in the
    batch, since `g` is then shared by its copies). Where the share may be next to nothing, as with `Scent`, the
    gradient takes r for at most `LARGEST_RATIO`: it and its norm stay finite, and so does the value.

    Args:
        log_g: log of the minibatch mean, with gradient.
        tau: temperatures, > 0.
        rho: radius of the KL ball, >= 0.
        log_u: held estimate of the log of the population mean; no gradient flows to it. None: `log_g` is exact.

    Returns:
        One value per row.

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
        log_u: held estimate, see `dual_value`.

    Returns:
        One value per row.

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
    return _tilt(margins, tau, mask)[0]


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


def _tilt(margins: Scores, tau: PerRow, mask: Mask | None) -> tuple[PerRow, PerRow]:
    """KL(p||U) and Var_p(h / tau) = -dKL/dlog(tau) of p = softmax(h / tau)."""
    p = _weights(margins, tau, mask)
    inside = margins if mask is None else margins.masked_fill(~mask, -math.inf)
    # Centred at the maximum the difference below keeps its digits when h / tau is large.
    top = inside.amax(1, keepdim=True)
    top = top.masked_fill(top.isneginf(), 0.0)
    z = (inside - top) / tau[:, None]
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

    KL(p||U) decreases in tau, so the minimiser is the root of KL = rho, or a bound. Newton in log tau, kept
    inside a bracket that at least halves whenever Newton leaves it. The number of iterations is fixed: there
    is no data-dependent control flow. No gradient flows through the solution (none is needed, since
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

    Returns:
        One temperature per row.

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
    at_floor = _tilt(margins, low.exp(), mask)[0] <= rho
    at_ceiling = _tilt(margins, high.exp(), mask)[0] >= rho
    x = log_tau_at(rho, lambda tau: _tilt(margins, tau, mask), low, high, iterations)
    tau: Tensor = x.exp().clamp(tau_min, tau_max)
    tau = tau.masked_fill(at_ceiling, tau_max)
    return tau.masked_fill(at_floor & ~at_ceiling, tau_min)
