"""FastCLIP: four losses of the whole data set, with gamma descending from 1 over the first half of training.

They follow the paper; docstrings note where the released code (commit efd89d5) differs.
"""

from dro_temp._checks import check_bounds, check_count, check_within
from dro_temp.estimators import CosineGamma, LogMovingAverage
from dro_temp.interfaces import HostAdapter
from dro_temp.losses import EntropicRiskLoss
from dro_temp.objective import Objective
from dro_temp.predictors import LearnableTemperature
from dro_temp.recipes.robust import isogclr, per_view, robust, sogclr


def _descending(gamma: float, epochs: int, steps_per_epoch: int) -> CosineGamma:
    epochs = check_count("epochs", epochs)
    return CosineGamma(gamma, epochs=max(epochs // 2, 1), steps_per_epoch=steps_per_epoch)


def fastclip_v0(
    host: HostAdapter,
    num_samples: int,
    *,
    epochs: int,
    steps_per_epoch: int,
    gamma: float = 0.2,
    tau_init: float = 0.07,
    tau_min: float = 0.01,
    tau_max: float = 1.0,
) -> Objective:
    r"""FastCLIP v0, the unscaled global contrastive loss $\log \mathbb{E}_j\, e^{h_{ij}/\tau}$, tau learnable.

    One temperature for all views, with gradient $-\mathbb{E}_w[h]/\tau^2$. In the released code that gradient arrives
    twice, through anchors and through columns, and is twice as large; and the value returned is $g/u$, not $\log u$.

    Args:
        host: makes rows of pairs.
        num_samples: size of the data set.
        epochs: length of the training; gamma reaches its last value in the middle.
        steps_per_epoch: optimizer steps in an epoch.
        gamma: the last value, in (0, 1].
        tau_init: where the temperature starts, in [tau_min, tau_max].
        tau_min: lower bound.
        tau_max: upper bound.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.fastclip_v0(host, num_samples=100, epochs=10, steps_per_epoch=12)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2407.01445 (FastCLIP).
    """
    schedule = _descending(gamma, epochs, steps_per_epoch)
    loss = per_view(host, lambda: EntropicRiskLoss(estimator=LogMovingAverage(num_samples, gamma=schedule)))
    return Objective(host, LearnableTemperature(tau_init, tau_min=tau_min, tau_max=tau_max), loss)


def fastclip_v1(
    host: HostAdapter,
    num_samples: int,
    *,
    epochs: int,
    steps_per_epoch: int,
    gamma: float = 0.2,
    tau: float = 0.07,
) -> Objective:
    r"""FastCLIP v1: `sogclr` with a cosine schedule of gamma.

    The released script omits the factor tau, which under Adam changes only the influence of epsilon.

    Args:
        host: makes rows of pairs.
        num_samples: size of the data set.
        epochs: length of the training; gamma reaches its last value in the middle.
        steps_per_epoch: optimizer steps in an epoch.
        gamma: the last value, in (0, 1].
        tau: temperature, > 0.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.fastclip_v1(host, num_samples=100, epochs=10, steps_per_epoch=12)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2407.01445 (FastCLIP).
    """
    return sogclr(host, num_samples, tau=tau, gamma=_descending(gamma, epochs, steps_per_epoch))


def fastclip_v2(
    host: HostAdapter,
    num_samples: int,
    *,
    epochs: int,
    steps_per_epoch: int,
    rho: float = 7.0,
    gamma: float = 0.2,
    tau_init: float | None = 0.03,
    tau_min: float = 0.01,
    tau_max: float = 1.0,
    tau_step: float = 0.01,
) -> Objective:
    r"""FastCLIP v2: `isogclr` with a cosine schedule of gamma.

    The released code omits the factor $\tau_i$ of the loss, so that a row's gradient is weighted by $1/\tau_i$; divides
    the temperature's step by a running root mean square, as Adam does; and stores a maximum for each sample that never
    decays.

    Args:
        host: makes rows of pairs.
        num_samples: size of the data set.
        epochs: length of the training; gamma reaches its last value in the middle.
        steps_per_epoch: optimizer steps in an epoch.
        rho: radius in nats, 0 <= rho < log(num_samples - 1).
        gamma: the last value, in (0, 1].
        tau_init: where every temperature starts, in [tau_min, tau_max]; the geometric middle if None.
        tau_min: lower bound, > 0.
        tau_max: upper bound.
        tau_step: step of a temperature along its own gradient, > 0, see `GradientUpdate`.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.fastclip_v2(host, num_samples=100, epochs=10, steps_per_epoch=12, rho=2.0)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2407.01445 (FastCLIP).
    """
    if tau_init is not None:
        check_bounds(tau_min, tau_max)
        check_within("tau_init", tau_init, tau_min, tau_max, default=0.03)
    return isogclr(
        host,
        num_samples,
        rho=rho,
        tau_min=tau_min,
        tau_max=tau_max,
        tau_init=tau_init,
        tau_step=tau_step,
        gamma=_descending(gamma, epochs, steps_per_epoch),
    )


def fastclip_v3(
    host: HostAdapter,
    num_samples: int,
    *,
    epochs: int,
    steps_per_epoch: int,
    rho: float = 6.5,
    gamma: float = 0.2,
    tau_init: float = 0.07,
    tau_min: float = 0.01,
    tau_max: float = 1.0,
) -> Objective:
    r"""FastCLIP v3, RGCL-g: $\tau (\log \mathbb{E}_j\, e^{h_{ij}/\tau} + \rho)$, one learnable temperature.

    Its gradient is the mean over rows of $\rho + \log u_i - \mathbb{E}_{w_i}[h/\tau]$. The released code counts the
    last term twice.

    Args:
        host: makes rows of pairs.
        num_samples: size of the data set.
        epochs: length of the training; gamma reaches its last value in the middle.
        steps_per_epoch: optimizer steps in an epoch.
        rho: radius in nats, 0 <= rho < log(num_samples - 1); 6.5 for CC3M, 8.5 for CC12M.
        gamma: the last value, in (0, 1].
        tau_init: where the temperature starts, in [tau_min, tau_max].
        tau_min: lower bound.
        tau_max: upper bound.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.fastclip_v3(host, num_samples=100, epochs=10, steps_per_epoch=12, rho=2.0)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2407.01445 (FastCLIP).
    """
    schedule = _descending(gamma, epochs, steps_per_epoch)
    return Objective(
        host,
        LearnableTemperature(tau_init, tau_min=tau_min, tau_max=tau_max),
        robust(host, rho, num_samples, schedule),
    )
