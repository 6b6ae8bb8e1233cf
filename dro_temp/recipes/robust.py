"""Losses over the whole data set: an estimator stores every sample's inner mean.

Train them with `CompositionalOptimizer`, which commits that memory, and pass `index` to the objective.
"""

from collections.abc import Callable
from typing import TypeVar

from dro_temp._checks import check_count, check_feasible_for, check_kind, check_radius
from dro_temp.estimators import LogMovingAverage, Scent
from dro_temp.estimators.moving_average import Schedule
from dro_temp.hosts import WithReference
from dro_temp.interfaces import HostAdapter, RobustLoss
from dro_temp.losses import EntropicRiskLoss, KLRobustLoss
from dro_temp.objective import Objective
from dro_temp.predictors import ConstantTemperature, GradientUpdate, IndividualTemperature

_Part = TypeVar("_Part")


def per_view(host: HostAdapter, build: Callable[[], _Part]) -> dict[str, _Part]:
    """A part of its own for each view: image row 7 and text row 7 are different rows."""
    check_kind("host", host, HostAdapter, "Wrap the model: dro_temp.hosts.TwoTower(...).")
    return {view: build() for view in host.views}


def robust(host: HostAdapter, rho: float, num_samples: int, gamma: float | Schedule) -> dict[str, RobustLoss]:
    """The KL-robust loss of each view, with a moving average of its own; raises at once for a radius too large."""
    check_radius(rho)
    check_feasible_for(rho, check_count("num_samples", num_samples))
    return per_view(host, lambda: KLRobustLoss(rho, estimator=LogMovingAverage(num_samples, gamma=gamma)))


def sogclr(
    host: HostAdapter, num_samples: int, *, tau: float = 0.07, gamma: float | Schedule = 0.8
) -> Objective:
    r"""SogCLR, the global contrastive loss (GCL): $\tau \log \mathbb{E}_j\, e^{h_{ij}/\tau}$, tau constant.

    Args:
        host: makes rows of pairs.
        num_samples: size of the data set.
        tau: temperature, > 0.
        gamma: weight of the new minibatch in the moving average, in (0, 1], or a schedule.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.sogclr(host, num_samples=100, tau=0.07, gamma=0.8)
        >>> optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(objective.param_groups(lr=1e-3)), objective)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()
        >>> optimizer.step()

    Source: arXiv 2202.12387 (SogCLR).
    """
    return Objective(host, ConstantTemperature(tau), robust(host, 0.0, num_samples, gamma))


def isogclr(
    host: HostAdapter,
    num_samples: int,
    *,
    rho: float = 7.0,
    tau_min: float = 0.005,
    tau_max: float = 0.05,
    tau_init: float | None = None,
    tau_step: float = 0.01,
    tau_clip: float = 5.0,
    gamma: float | Schedule = 0.8,
) -> Objective:
    r"""iSogCLR, the robust global contrastive loss (RGCL): $\tau_i (\log \mathbb{E}_j\, e^{h_{ij}/\tau_i} + \rho)$.

    Every sample has a temperature of its own in each view, updated by its own gradient.

    Args:
        host: makes rows of pairs, or of two views of one modality (`hosts.TwoViews`).
        num_samples: size of the data set.
        rho: radius in nats, 0 <= rho < log(num_samples - 1).
        tau_min: lower bound, > 0.
        tau_max: upper bound.
        tau_init: where every temperature starts; the geometric middle if None.
        tau_step: step of a temperature along its own gradient, > 0, see `GradientUpdate`.
        tau_clip: largest gradient of a temperature, > 0; the paper's 5 for pairs, 3 for two views.
        gamma: weight of the new minibatch in the moving average, in (0, 1], or a schedule.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.isogclr(host, num_samples=100, rho=2.0)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2305.11965 (iSogCLR); bounds, rho and gamma as in arXiv 2404.04575 for CC3M.
    """
    update = GradientUpdate(lr=tau_step, clip=tau_clip)
    predictor = per_view(
        host,
        lambda: IndividualTemperature(
            num_samples, tau_min=tau_min, tau_max=tau_max, tau_init=tau_init, update=update
        ),
    )
    return Objective(host, predictor, robust(host, rho, num_samples, gamma))


def drrho(
    host: HostAdapter,
    reference: HostAdapter,
    num_samples: int,
    *,
    tau: float = 0.01,
    gamma: float | Schedule = 0.8,
) -> Objective:
    r"""DRRho: `sogclr` of the margins less those of a reference.

    $$\tau \log \mathbb{E}_j\, e^{(h_{ij} - h^{\mathrm{ref}}_{ij})/\tau}$$

    Args:
        host: makes rows of pairs.
        reference: a host with `frozen=True` around the reference model, that takes the same batches.
        num_samples: size of the data set.
        tau: temperature, > 0; 0.01 is that of the released script.
        gamma: weight of the new minibatch in the moving average, in (0, 1], or a schedule.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> reference = dt.hosts.TwoTower(torch.nn.Linear(6, 3), torch.nn.Linear(5, 3), frozen=True)
        >>> objective = dt.recipes.drrho(host, reference, num_samples=100)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2505.06699 (DRRho).
    """
    return sogclr(WithReference(host, reference), num_samples, tau=tau, gamma=gamma)


def scent(host: HostAdapter, num_samples: int, *, tau: float = 0.07, alpha: float = 10.0) -> Objective:
    r"""SCENT: $\log \mathbb{E}_j\, e^{h_{ij}/\tau}$ with mirror descent on $\nu_i = \log u_i$ in place of a gamma.

    Args:
        host: makes rows of pairs.
        num_samples: size of the data set.
        tau: temperature, > 0.
        alpha: log of the step size; the paper's contrastive runs take 10.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.scent(host, num_samples=100)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2602.02877 (SCENT).
    """
    loss = per_view(host, lambda: EntropicRiskLoss(estimator=Scent(num_samples, alpha=alpha)))
    return Objective(host, ConstantTemperature(tau), loss)
