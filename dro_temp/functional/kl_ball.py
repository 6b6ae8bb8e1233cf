"""The worst case of a batch's losses over all distributions within a KL ball around the samples' own."""

import math

import torch

from dro_temp._checks import check_count, check_floats, check_radius
from dro_temp._typing import PerRow, Scalar
from dro_temp.functional._newton import log_tau_at
from dro_temp.functional.risks import _unit, shares

#: Temperatures in units of the losses' spread. Below, only the greatest loss counts; above, all do alike. The lowest is
#: what ordinary losses need beside one that is infinite; the squares of what is divided by it do not overflow.
LOWEST, HIGHEST = {torch.float64: 1e-130, torch.float32: 1e-17}, 1e9


@torch.no_grad()
def kl_ball_weights(
    losses: PerRow, weight: PerRow | None = None, *, rho: float, iterations: int = 60
) -> PerRow:
    r"""$\arg\max_p \sum_i p_i l_i$ over $\mathrm{KL}(p\|s) \le \rho$, with $s = w / \sum w$.

    $p_i \propto s_i e^{l_i/\tau}$ at the tau where $\mathrm{KL}(p\|s) = \rho$, or the greatest losses alone where the
    ball holds that. Its value is $\min_\tau \tau (\log \sum_i s_i e^{l_i/\tau} + \rho)$. As `optimal_tau`, weighted,
    and with bounds that follow the spread of the losses: a safeguarded Newton iteration in log tau, of fixed length.

    Args:
        losses: any.
        weight: >= 0; all alike if None.
        rho: radius in nats, >= 0.
        iterations: Newton or bisection steps.

    Returns:
        Weights that sum to one.

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
    low, high = x.new_tensor(math.log(LOWEST[x.dtype])), x.new_tensor(math.log(HIGHEST))
    log_tau = log_tau_at(rho, lambda tau: _tilt(x, log_share, tau), low, high, iterations)
    return (x / log_tau.exp() + log_share).softmax(0).to(losses.dtype)


def _tilt(x: PerRow, log_share: PerRow, tau: Scalar) -> tuple[Scalar, Scalar]:
    """KL(p||s) and Var_p(x / tau) = -dKL/dlog(tau) of p ~ s e^(x / tau)."""
    z = x / tau
    p = (z + log_share).softmax(0)
    mean = (p * z).sum()
    kl = mean - (z + log_share).logsumexp(0)
    return kl, (p * (z - mean).square()).sum()
