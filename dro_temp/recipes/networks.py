"""Robust losses over the whole data set, with temperatures predicted by a network."""

from dro_temp._checks import check_count
from dro_temp.estimators.moving_average import Schedule
from dro_temp.interfaces import HostAdapter
from dro_temp.losses import KLRobustLoss, QueuedLoss
from dro_temp.objective import Objective
from dro_temp.predictors import HiddenEncoder, ResidualReadout, TempNet
from dro_temp.recipes.robust import per_view, robust


def tempnet(
    host: HostAdapter,
    num_samples: int,
    width: int,
    *,
    rho: float = 7.0,
    tau_min: float = 0.005,
    tau_max: float = 0.05,
    tau_init: float | None = None,
    gamma: float | Schedule = 0.8,
) -> Objective:
    r"""TempNet: RGCL with $\tau_i$ predicted from the row's features by a small network for each side.

    Args:
        host: makes rows of pairs with features.
        num_samples: size of the data set.
        width: width of the features.
        rho: radius in nats, 0 <= rho < log(num_samples - 1).
        tau_min: lower bound, > 0.
        tau_max: upper bound.
        tau_init: see `TempNet`.
        gamma: weight of the new minibatch in the moving average, in (0, 1], or a schedule.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.tempnet(host, num_samples=100, width=4, rho=2.0)
        >>> objective.start_prototypes(torch.randn(8, 6), torch.randn(8, 5))
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2404.04575, with its numbers for CC3M.
    """
    predictor = per_view(host, lambda: TempNet(width, tau_min=tau_min, tau_max=tau_max, tau_init=tau_init))
    return Objective(host, predictor, robust(host, rho, num_samples, gamma))


def tempnet_queued(
    host: HostAdapter,
    num_samples: int,
    width: int,
    *,
    rho: float = 7.0,
    tau_min: float = 0.005,
    tau_max: float = 0.05,
    tau_init: float | None = None,
    gamma: float | Schedule = 0.8,
    queue: int = 16_384,
    replay: int = 512,
    hidden: int = 256,
) -> Objective:
    r"""TempNet closer to the optimal temperatures: RGCL with a network that learns from a queue of keys.

    Differences from the paper's `tempnet`: the network reads the embedding through a small perceptron; its readout
    starts at one temperature for all rows (`ResidualReadout`); it learns from the robust loss over the last `queue`
    keys (`QueuedLoss`) instead of the batch's few, and from earlier rows as well as the batch's own. Train it with
    `hold_temperatures`. The scores of `hosts.TwoViews` are not products of queries and keys, so there are no keys to
    queue: the network then learns from the batch's 2B - 2 outcomes.

    Args:
        host: makes rows of pairs with features.
        num_samples: size of the data set.
        width: width of the features.
        rho: radius in nats, 0 <= rho < log(num_samples - 1).
        tau_min: lower bound, > 0.
        tau_max: upper bound.
        tau_init: where every temperature starts; the middle of the bounds if None.
        gamma: weight of the new minibatch in the moving average, in (0, 1], or a schedule.
        queue: maximum number of keys; limited to those of the data set.
        replay: maximum number of queued rows from which the network learns in addition to the batch's own; one to four
            times the batch size.
        hidden: width of the perceptron.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.tempnet_queued(host, num_samples=100, width=4, rho=2.0)
        >>> optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(objective.param_groups(lr=1e-3)), objective)
        >>> scheduler = dt.hold_temperatures(optimizer, steps=200)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()
        >>> optimizer.step(); scheduler.step()

    Source: this library, from arXiv 2404.04575.
    """
    predictor = per_view(
        host,
        lambda: TempNet(
            HiddenEncoder(width, width=hidden),
            tau_min=tau_min,
            tau_max=tau_max,
            tau_init=tau_init,
            readout=ResidualReadout,
        ),
    )
    num_samples, queue = check_count("num_samples", num_samples), check_count("queue", queue)
    replay = check_count("replay", replay, minimum=0)
    size = max(1, min(queue, num_samples - 1))
    tau_loss = per_view(
        host, lambda: QueuedLoss(KLRobustLoss(rho), size=size, features=width, replay=min(replay, size))
    )
    loss = robust(host, rho, num_samples, gamma)
    return Objective(host, predictor, loss, tau_loss=tau_loss)
