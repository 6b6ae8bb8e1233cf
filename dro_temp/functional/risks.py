"""The worst case of a batch's losses over distributions near the samples' own.

    risk(l) = max_p sum_i p_i l_i - penalty(p),      p a distribution near the samples' own, w / sum w.

Where p is constrained, the functions return the worst p, which sums to one: it is the gradient of the risk (the
envelope theorem), and the risk is sum_i p_i l_i. All are invariant to a common factor of the weights; if all weights
are zero, they count as ones.
"""

import math

import torch

from dro_temp._checks import check_count, check_floats, check_radius, check_share, check_tilt
from dro_temp._typing import PerRow, Scalar
from dro_temp.functional.kl import log_tau_at


def shares(losses: PerRow, weight: PerRow | None = None) -> PerRow:
    r"""Each sample's share of the whole, $w_i / \sum_j w_j$.

    Args:
        losses: of the samples; only their number counts.
        weight: >= 0; all alike if None.

    Example:
        >>> shares(torch.zeros(2), torch.tensor([1.0, 3.0]))
        tensor([0.2500, 0.7500])
    """
    if weight is None:
        return torch.full_like(losses, 1.0 / max(len(losses), 1)).detach()
    weight = weight.detach().to(losses.dtype)
    weight = torch.where(weight.sum() > 0, weight, torch.ones_like(weight))
    return weight / weight.sum()


def weighted_log_mean_exp(x: PerRow, weight: PerRow | None = None) -> Scalar:
    r"""$\log \sum_i w_i e^{x_i} / \sum_i w_i$, exact for exponents near each other and without overflow for far ones.

    Args:
        x: exponents. One of -inf adds nothing but its weight to the denominator. With one of inf the value is inf,
            and the gradient is that of the limit, which rests on the infinite ones alone.
        weight: >= 0; all alike if None.

    Returns:
        The log of the mean; its gradient is $w_i e^{x_i}$ over their sum.

    Example:
        >>> weighted_log_mean_exp(torch.tensor([0.0, 1e4]), torch.tensor([1.0, 0.0]))
        tensor(0.)
    """
    share = shares(x, weight)
    counts, log_share = share > 0, share.log()
    x = x.masked_fill(~counts, 0.0)
    # The exponent of the largest term: smaller terms must not cost the others digits.
    pivot = x.detach().gather(0, (x.detach() + log_share).argmax(0, keepdim=True))[0]
    infinite = pivot.isinf()
    value = _about(pivot.masked_fill(infinite, 0.0), x.masked_fill(infinite, 0.0), share, log_share)
    # The limit, whose gradient is finite: the mean over the infinite exponents, inf or, if all are, -inf.
    limit = shares(x, share.masked_fill(x.detach() != pivot, 0.0))
    return torch.where(infinite, mean_under(limit, x), value)


def _about(pivot: Scalar, x: PerRow, share: PerRow, log_share: PerRow) -> Scalar:
    """The log of the mean of exponentials about a finite pivot, the exponent of the largest term."""
    far = pivot + (x - pivot + log_share).logsumexp(0)
    with torch.no_grad():
        below = x - pivot
        centre = pivot + mean_under((below + log_share).softmax(0), below)
        # The log of the mean lies below the tilted mean by KL(p || share).
        near = (centre - far < 0.5) & (x - centre < 80.0).all()
        centre = centre.masked_fill(~near, 0.0)
    # log(1 + d) of a small d keeps digits that the log of a sum of exponentials loses: `tilted_mean` divides by a
    # small t.
    d = (share * (x - centre).masked_fill(~near | (share == 0), 0.0).expm1()).sum()
    return torch.where(near, centre + d.log1p(), far)


def mean_under(p: PerRow, losses: PerRow) -> Scalar:
    r"""$\sum_i p_i l_i$; a loss at p = 0 adds nothing, also where it is infinite, and its gradient is zero.

    Args:
        p: weights that sum to one.
        losses: any.

    Example:
        >>> mean_under(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([1.0, 2.0, torch.inf]))
        tensor(1.5000)
    """
    return (p * losses.masked_fill(p == 0, 0.0)).sum()


def tilted_mean(losses: PerRow, weight: PerRow | None = None, *, tilt: float) -> Scalar:
    r"""$\frac1t \log \left(\sum_i w_i e^{t l_i} / \sum_i w_i\right)$: from the least loss, t = -inf, to the greatest.

    For t > 0 it is $\max_p \sum_i p_i l_i - \frac1t \mathrm{KL}(p\|w)$, for t < 0 the minimum with a plus.

    Args:
        losses: any.
        weight: of the samples, as in `shares`.
        tilt: t, of either sign, not 0.

    Example:
        >>> tilted_mean(torch.tensor([0.0, 1.0]), tilt=100.0)
        tensor(0.9931)

    Source: arXiv 2007.01162 (TERM).
    """
    check_floats("losses", losses)
    check_tilt(tilt)
    return weighted_log_mean_exp(tilt * losses, weight) / tilt


@torch.no_grad()
def cvar_weights(losses: PerRow, weight: PerRow | None = None, *, alpha: float) -> PerRow:
    r"""The worst share alpha of the samples: $\arg\max_p \sum_i p_i l_i$ with $p_i \le w_i / (\alpha \sum_j w_j)$.

    Its value is $\min_\eta \eta + \frac1\alpha \sum_i w_i (l_i - \eta)_+ / \sum_i w_i$, the mean of the worst share
    alpha; of the sample on its edge only a part counts.

    Args:
        losses: any.
        weight: >= 0; all alike if None.
        alpha: share, in (0, 1].

    Example:
        >>> cvar_weights(torch.tensor([3.0, 1.0, 2.0]), alpha=0.5)
        tensor([0.6667, 0.0000, 0.3333])

    Source: Rockafellar and Uryasev, Optimization of conditional value-at-risk, 2000.
    """
    check_floats("losses", losses)
    check_share("alpha", alpha)
    share = shares(losses, weight)
    order = losses.argsort(descending=True, stable=True)
    ordered = share[order]
    before = ordered.cumsum(0) - ordered  # share of the worse samples
    part = torch.minimum(ordered, (alpha - before).clamp(min=0.0))
    # Normalised: rounding must not leave a batch of tiny shares without any.
    return torch.empty_like(share).scatter(0, order, part / part.sum())


@torch.no_grad()
def chi_square_weights(losses: PerRow, weight: PerRow | None = None, *, rho: float) -> PerRow:
    r"""$\arg\max_p \sum_i p_i l_i$ over $\frac12 \sum_i s_i (p_i/s_i - 1)^2 \le \rho$, with $s = w / \sum w$.

    Its value is $\min_\eta \eta + \sqrt{1 + 2\rho} \left(\sum_i s_i (l_i - \eta)_+^2\right)^{1/2}$, and
    $p_i \propto s_i (l_i - \eta)_+$ at the best eta. Samples are sorted once; there is no iteration.

    Args:
        losses: any.
        weight: >= 0; all alike if None.
        rho: radius, >= 0. The ball holds every distribution from (n - 1) / 2 on.

    Example:
        >>> chi_square_weights(torch.tensor([0.0, 1.0, 2.0]), rho=0.25)
        tensor([0.0447, 0.3333, 0.6220])

    Source: arXiv 1610.03425 (Duchi, Glynn, Namkoong); arXiv 1806.08010 (Hashimoto and others).
    """
    check_floats("losses", losses)
    check_radius(rho)
    share = shares(losses, weight)
    counts = share > 0
    x = _unit(losses, counts)
    share = share.to(x.dtype)
    bound = 1.0 + 2.0 * rho
    active = counts & (_is_above_eta(x, share, bound) | (x == 0))
    part = share * active
    mass = part.sum()
    distance = (x - (part * x).sum() / mass) * active
    variance = (part * distance.square()).sum() / mass
    # eta lies 1/slope below the active samples' mean; infinitely far where rho = 0.
    slope = ((bound * mass - 1.0).clamp(min=0.0) / variance.masked_fill(variance == 0, 1.0)).sqrt()
    p = part * (1.0 + slope * distance).clamp(min=0.0)
    return (p / p.sum()).to(losses.dtype)


# Bounds of tau in units of the losses' spread. Below, only the greatest loss counts; above, all count alike. The
# lower one resolves ordinary losses beside an infinite one, and squares of numbers divided by it do not overflow.
_LOWEST_TAU, _HIGHEST_TAU = {torch.float64: 1e-130, torch.float32: 1e-17}, 1e9


@torch.no_grad()
def kl_ball_weights(
    losses: PerRow, weight: PerRow | None = None, *, rho: float, iterations: int = 60
) -> PerRow:
    r"""$\arg\max_p \sum_i p_i l_i$ over $\mathrm{KL}(p\|s) \le \rho$, with $s = w / \sum w$.

    $p_i \propto s_i e^{l_i/\tau}$ at the tau where $\mathrm{KL}(p\|s) = \rho$, or the greatest losses alone if the ball
    contains that. Its value is $\min_\tau \tau (\log \sum_i s_i e^{l_i/\tau} + \rho)$. As `optimal_tau`, weighted,
    and with bounds that follow the spread of the losses.

    Args:
        losses: any.
        weight: >= 0; all alike if None.
        rho: radius in nats, >= 0.
        iterations: Newton or bisection steps.

    Example:
        >>> p = kl_ball_weights(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), rho=0.5)
        >>> (p * (3 * p).log()).sum()
        tensor(0.5000, dtype=torch.float64)

    Source: arXiv 2404.04575, section 3, over samples in place of outcomes.
    """
    check_floats("losses", losses)
    check_radius(rho)
    check_count("iterations", iterations)
    share = shares(losses, weight)
    if rho == 0.0:
        return share
    x = _unit(losses, share > 0)
    log_share = share.to(x.dtype).log()
    low, high = (x.new_full((), math.log(tau)) for tau in (_LOWEST_TAU[x.dtype], _HIGHEST_TAU))
    log_tau = log_tau_at(rho, lambda tau, _: _kl_and_slope(x, log_share, tau), low, high, iterations)
    return (x / log_tau.exp() + log_share).softmax(0).to(losses.dtype)


def _kl_and_slope(x: PerRow, log_share: PerRow, tau: Scalar) -> tuple[Scalar, Scalar]:
    """KL(p||s) and -dKL/dlog(tau) = Var_p(x / tau) of p ~ s e^(x / tau)."""
    z = x / tau
    p = (z + log_share).softmax(0)
    mean = (p * z).sum()
    kl = mean - (z + log_share).logsumexp(0)
    return kl, (p * (z - mean).square()).sum()


def _unit(losses: PerRow, counts: torch.Tensor) -> PerRow:
    """Losses scaled to [-1, 0], the greatest at 0, in float64 where the device has it.

    Beside an outlier the differences of the others are tiny, and may still matter. Infinity is replaced by a number so
    large that the result is that of the limit, and whose square does not overflow.
    """
    x = losses if losses.device.type == "mps" else losses.double()
    x = x.clamp(-(bound := torch.finfo(x.dtype).max ** 0.325), bound)
    top = x.masked_fill(~counts, -torch.inf).amax()
    spread = top - x.masked_fill(~counts, torch.inf).amin()
    return ((x - top) / spread.masked_fill(spread == 0, 1.0)).masked_fill(~counts, -1.0)


def _is_above_eta(x: PerRow, share: PerRow, bound: float) -> torch.Tensor:
    """Whether the best eta lies below each sample: then E(x - eta)_+^2 > bound (E(x - eta)_+)^2 there."""
    order = x.argsort(descending=True, stable=True)
    ordered, s = x[order], share[order]
    mass, first, second = (part.cumsum(0) for part in (s, s * ordered, s * ordered.square()))
    mean = first - mass * ordered
    square = second - 2.0 * ordered * first + mass * ordered.square()
    above = square > bound * mean.square()
    return torch.empty_like(above).scatter(0, order, above)
