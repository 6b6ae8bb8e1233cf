"""Losses over the minibatch, without memory of samples."""

from dro_temp.interfaces import HostAdapter
from dro_temp.losses import CyclicPenalty, InfoNCELoss, SigmoidLoss
from dro_temp.objective import Objective
from dro_temp.predictors import ConstantTemperature, LearnableTemperature


def infonce(
    host: HostAdapter, *, tau_init: float = 0.07, tau_min: float = 0.01, tau_max: float = 1.0
) -> Objective:
    r"""CLIP: $\log \sum_j e^{h_{ij}/\tau}$ over all columns, one learnable temperature for all views.

    Args:
        host: makes rows.
        tau_init: where the temperature starts, in [tau_min, tau_max].
        tau_min: lower bound; 0.01 is CLIP's clamp of the scale at 100.
        tau_max: upper bound.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> dt.recipes.infonce(host)(torch.randn(8, 6), torch.randn(8, 5)).loss.backward()

    Source: arXiv 2103.00020 (CLIP), section 2.5.
    """
    return Objective(host, LearnableTemperature(tau_init, tau_min=tau_min, tau_max=tau_max), InfoNCELoss())


def simclr(host: HostAdapter, *, tau: float = 0.1) -> Objective:
    r"""SimCLR's NT-Xent: $\log \sum_j e^{h_{ij}/\tau}$ over all columns, tau constant.

    With `hosts.TwoViews` a row's columns are its own other view and the 2B - 2 views of other samples.

    Args:
        host: makes rows.
        tau: temperature, > 0.

    Raises:
        ValueError: a temperature that is not positive.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoViews(torch.nn.Linear(6, 4))
        >>> dt.recipes.simclr(host, tau=0.2)(torch.randn(8, 6), torch.randn(8, 6)).loss.backward()

    Source: arXiv 2002.05709 (SimCLR), equation 1.
    """
    return Objective(host, ConstantTemperature(tau), InfoNCELoss())


def cyclip(
    host: HostAdapter,
    *,
    in_modal: float = 0.25,
    cross_modal: float = 0.25,
    tau_init: float = 0.07,
    tau_min: float = 0.01,
    tau_max: float = 1.0,
) -> Objective:
    r"""CyCLIP: `infonce` plus `CyclicPenalty`.

    $$\frac{a}{B} \sum_{ij} (s^{II}_{ij} - s^{TT}_{ij})^2 + \frac{c}{B} \sum_{ij} (s_{ij} - s_{ji})^2$$

    Args:
        host: makes rows of two views, "image" and "text", that mirror each other.
        in_modal: weight a, >= 0.
        cross_modal: weight c, >= 0.
        tau_init: where the temperature starts, in [tau_min, tau_max].
        tau_min: lower bound.
        tau_max: upper bound.

    Raises:
        ValueError: a negative weight, or a host without two such views.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> output = dt.recipes.cyclip(host)(torch.randn(8, 6), torch.randn(8, 5))
        >>> bool(output.loss > output.metrics["penalty/cyclic"])
        True

    Source: arXiv 2205.14459 (CyCLIP).
    """
    predictor = LearnableTemperature(tau_init, tau_min=tau_min, tau_max=tau_max)
    return Objective(host, predictor, InfoNCELoss(), penalties=(CyclicPenalty(in_modal, cross_modal),))


def siglip(
    host: HostAdapter,
    *,
    tau_init: float = 0.1,
    bias_init: float = -10.0,
    tau_min: float = 0.01,
    tau_max: float = 1.0,
) -> Objective:
    r"""SigLIP: $-\sum_j \log \sigma(y_{ij}(s_{ij}/\tau + b))$, one learnable temperature and bias for all views.

    Args:
        host: makes rows.
        tau_init: where the temperature starts; 0.1 is SigLIP's scale of 10.
        bias_init: where the bias starts.
        tau_min: lower bound. SigLIP has none; the bounds are CLIP's.
        tau_max: upper bound.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.siglip(host)
        >>> [group["name"] for group in objective.param_groups(lr=1e-3, weight_decay=0.1)]
        ['host', 'loss', 'temperature']

    Source: arXiv 2303.15343 (SigLIP).
    """
    predictor = LearnableTemperature(tau_init, tau_min=tau_min, tau_max=tau_max)
    return Objective(host, predictor, SigmoidLoss(bias_init))
