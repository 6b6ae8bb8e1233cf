"""Named schemes: each function composes a predictor, a loss and an estimator into an `Objective` over a host.

They have no state of their own. Copy one to vary what it leaves fixed. Those that take `num_samples` store every
sample's inner mean: train them with `CompositionalOptimizer`, which commits that memory, and pass `index` to the
objective. FastCLIP follows its paper; docstrings note where the released code (commit efd89d5) differs.
"""

from collections.abc import Callable
from typing import TypeVar

from dro_temp import losses, predictors, risks
from dro_temp._checks import (
    check_bounds,
    check_count,
    check_feasible_for,
    check_kind,
    check_radius,
    check_within,
)
from dro_temp.estimators import CosineGamma, LogMovingAverage, Scent
from dro_temp.estimators.moving_average import Schedule
from dro_temp.hosts import WithReference
from dro_temp.interfaces import HostAdapter
from dro_temp.objective import Objective

__all__ = [
    "cyclip",
    "drrho",
    "fastclip_v0",
    "fastclip_v1",
    "fastclip_v2",
    "fastclip_v3",
    "infonce",
    "isogclr",
    "noisy_pairs",
    "scent",
    "siglip",
    "simclr",
    "sogclr",
    "supcon",
    "tempnet",
    "tempnet_queued",
]

_Part = TypeVar("_Part")


def infonce(host: HostAdapter, *, tau_init: float = 0.07) -> Objective:
    r"""CLIP: $\log \sum_j e^{h_{ij}/\tau}$ over all columns, one learnable temperature for all views.

    Args:
        host: makes rows.
        tau_init: where the temperature starts, in [0.01, 1]; the lower bound is CLIP's clamp of the scale at 100.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> dt.recipes.infonce(host)(torch.randn(8, 6), torch.randn(8, 5)).loss.backward()

    Source: arXiv 2103.00020 (CLIP), section 2.5.
    """
    return Objective(host, predictors.LearnableTemperature(tau_init), losses.InfoNCELoss())


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
    return Objective(host, predictors.ConstantTemperature(tau), losses.InfoNCELoss())


def supcon(host: HostAdapter, *, tau: float = 0.1) -> Objective:
    r"""SupCon: $-\frac{1}{|P_i|} \sum_{p \in P_i} \log \mathrm{softmax}(s_i / \tau)_p$, tau constant.

    The positives of a row are its target and the columns of its group. With `hosts.TwoViews` and class numbers as
    groups that is supervised contrastive learning; without groups it is `simclr`.

    Args:
        host: makes rows, of batches with groups.
        tau: temperature, > 0.

    Raises:
        ValueError: a temperature that is not positive.

    Example:
        >>> import torch, dro_temp as dt
        >>> host, labels = dt.hosts.TwoViews(torch.nn.Linear(6, 4)), torch.randint(3, (8,))
        >>> dt.recipes.supcon(host)(torch.randn(8, 6), torch.randn(8, 6), group=labels).loss.backward()

    Source: arXiv 2004.11362 (SupCon), equation 2.
    """
    return Objective(host, predictors.ConstantTemperature(tau), losses.SupervisedContrastiveLoss())


def cyclip(
    host: HostAdapter,
    *,
    in_modal: float = 0.25,
    cross_modal: float = 0.25,
    tau_init: float = 0.07,
) -> Objective:
    r"""CyCLIP: `infonce` plus `CyclicPenalty`.

    $$\frac{a}{B} \sum_{ij} (s^{II}_{ij} - s^{TT}_{ij})^2 + \frac{c}{B} \sum_{ij} (s_{ij} - s_{ji})^2$$

    Args:
        host: makes rows of two views, "image" and "text", that mirror each other.
        in_modal: weight a of the difference between similarities of images and those of texts, >= 0.
        cross_modal: weight c of the difference between the two directions, >= 0.
        tau_init: as of `infonce`.

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
    tau, penalty = predictors.LearnableTemperature(tau_init), losses.CyclicPenalty(in_modal, cross_modal)
    return Objective(host, tau, losses.InfoNCELoss(), penalties=(penalty,))


def siglip(host: HostAdapter, *, tau_init: float = 0.1, bias_init: float = -10.0) -> Objective:
    r"""SigLIP: $-\sum_j \log \sigma(y_{ij}(s_{ij}/\tau + b))$, one learnable temperature and bias for all views.

    Args:
        host: makes rows.
        tau_init: where the temperature starts, in [0.01, 1]; 0.1 is SigLIP's scale of 10. The bounds are CLIP's:
            SigLIP has none.
        bias_init: where the bias starts.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.siglip(host)
        >>> [group["name"] for group in objective.param_groups(lr=1e-3, weight_decay=0.1)]
        ['host', 'loss', 'temperature']

    Source: arXiv 2303.15343 (SigLIP).
    """
    return Objective(host, predictors.LearnableTemperature(tau_init), losses.SigmoidLoss(bias_init))


def _per_view(host: HostAdapter, build: Callable[[], _Part]) -> dict[str, _Part]:
    """A part of its own for each view: image row 7 and text row 7 are different rows."""
    check_kind("host", host, HostAdapter, "Wrap the model: dro_temp.hosts.TwoTower(...).")
    return {view: build() for view in host.views}


def _robust(
    host: HostAdapter, rho: float, num_samples: int, gamma: float | Schedule
) -> dict[str, losses.KLRobustLoss]:
    """The KL-robust loss of each view, with a moving average of its own; raises at once for a radius too large."""
    robust = _per_view(
        host, lambda: losses.KLRobustLoss(rho, estimator=LogMovingAverage(num_samples, gamma=gamma))
    )
    check_feasible_for(rho, num_samples)
    return robust


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
    return Objective(host, predictors.ConstantTemperature(tau), _robust(host, 0.0, num_samples, gamma))


def noisy_pairs(
    host: HostAdapter,
    num_samples: int,
    *,
    steps: int,
    tau: float = 0.1,
    rho: float = 0.7,
    gamma: float | Schedule = 0.8,
) -> Objective:
    r"""`sogclr` of pairs some of which are wrong: the best case over the pairs of a batch, in place of their mean.

    $$\min_{p:\;\mathrm{KL}(p\|U) \le \rho_t} \sum_i p_i\, \tfrac12 (F_i^{\mathrm{image}} + F_i^{\mathrm{text}}), \qquad
    \rho_t = \rho \min(t / T, 1)$$

    A caption of another image keeps a large loss in both views, and the pair gets a small weight. Which those are is
    recorded: `objective.risks["all"].suspects(16)`, see `RecordedRisk`. Rare pairs get small weights as well: do not
    use this recipe where a group of a few samples matters.

    Args:
        host: makes rows of pairs.
        num_samples: size of the data set.
        steps: T, optimizer steps of the whole training: the radius rises from 0 over them.
        tau: temperature, > 0.
        rho: last radius in nats, >= 0 and below the log of the batch size. About a share of $1 - e^{-\rho}$ of the
            pairs is left out, wrong or not: 0.35 for a third, 0.7 for a half.
        gamma: weight of the new minibatch in the moving average, in (0, 1], or a schedule.

    Raises:
        ValueError: a temperature or a count that is not positive, or a negative radius.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.noisy_pairs(host, num_samples=100, steps=10 * 12)
        >>> optimizer = dt.CompositionalOptimizer(torch.optim.AdamW(objective.param_groups(lr=1e-3)), objective)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()
        >>> optimizer.step()
        >>> len(objective.risks["all"].suspects())
        8

    Source: this library; docs/wrong-captions.md has the measurements.
    """
    check_radius(rho)
    best = risks.OptimisticRisk(risks.RisingRadius(risks.KLRisk(0.0), rho, steps=steps))
    loss = _robust(host, 0.0, num_samples, gamma)
    return Objective(
        host, predictors.ConstantTemperature(tau), loss, risk=risks.RecordedRisk(best, num_samples)
    )


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
    update = predictors.GradientUpdate(lr=tau_step, clip=tau_clip)
    predictor = _per_view(
        host,
        lambda: predictors.IndividualTemperature(
            num_samples, tau_min=tau_min, tau_max=tau_max, tau_init=tau_init, update=update
        ),
    )
    return Objective(host, predictor, _robust(host, rho, num_samples, gamma))


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

    Its arguments are those of `sogclr`, and `reference`, a host with `frozen=True` around the reference model, that
    takes the same batches. The default of tau is that of the released script.

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
    loss = _per_view(host, lambda: losses.EntropicRiskLoss(estimator=Scent(num_samples, alpha=alpha)))
    return Objective(host, predictors.ConstantTemperature(tau), loss)


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

    Its arguments are those of `isogclr`, and `width`, that of the features which the host's rows have; for `tau_init`
    see `TempNet`.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.tempnet(host, num_samples=100, width=4, rho=2.0)
        >>> objective.start_prototypes(torch.randn(8, 6), torch.randn(8, 5))
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2404.04575, with its numbers for CC3M.
    """
    predictor = _per_view(
        host, lambda: predictors.TempNet(width, tau_min=tau_min, tau_max=tau_max, tau_init=tau_init)
    )
    return Objective(host, predictor, _robust(host, rho, num_samples, gamma))


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
) -> Objective:
    r"""TempNet closer to the optimal temperatures: RGCL with a network that learns from a queue of keys.

    Differences from the paper's `tempnet`: the network reads the embedding through a small perceptron; its readout
    starts at one temperature for all rows (`ResidualReadout`); it learns from the robust loss over the last `queue`
    keys (`QueuedLoss`) instead of the batch's few, and from earlier rows as well as the batch's own. Train it with
    `hold_temperatures`. The scores of `hosts.TwoViews` are not products of queries and keys, so there are no keys to
    queue: the network then learns from the batch's 2B - 2 outcomes.

    Args:
        host: makes rows of pairs.
        num_samples: size of the data set.
        width: as of `tempnet`.
        rho: as of `tempnet`.
        tau_min: as of `tempnet`.
        tau_max: as of `tempnet`.
        tau_init: where all temperatures start; the middle of the bounds if None.
        gamma: as of `tempnet`.
        queue: maximum number of keys, limited to those of the data set.
        replay: maximum number of queued rows from which the network learns in addition to the batch's own: one to four
            times the batch size.

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
    predictor = _per_view(
        host,
        lambda: predictors.TempNet(
            predictors.HiddenEncoder(width),
            tau_min=tau_min,
            tau_max=tau_max,
            tau_init=tau_init,
            readout=predictors.ResidualReadout,
        ),
    )
    num_samples, queue = check_count("num_samples", num_samples), check_count("queue", queue)
    replay = check_count("replay", replay, minimum=0)
    size = max(1, min(queue, num_samples - 1))
    tau_loss = _per_view(
        host,
        lambda: losses.QueuedLoss(
            losses.KLRobustLoss(rho), size=size, features=width, replay=min(replay, size)
        ),
    )
    loss = _robust(host, rho, num_samples, gamma)
    return Objective(host, predictor, loss, tau_loss=tau_loss)


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
    loss = _per_view(
        host, lambda: losses.EntropicRiskLoss(estimator=LogMovingAverage(num_samples, gamma=schedule))
    )
    return Objective(host, predictors.LearnableTemperature(tau_init, tau_min=tau_min, tau_max=tau_max), loss)


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

    Its arguments are those of `sogclr` and, for the schedule, of `fastclip_v0`.

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

    Its arguments are those of `isogclr` and, for the schedule, of `fastclip_v0`.

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

    Its arguments are those of `fastclip_v0`, and the radius `rho` in nats, 0 <= rho < log(num_samples - 1): 6.5 for
    CC3M, 8.5 for CC12M.

    Example:
        >>> import torch, dro_temp as dt
        >>> host = dt.hosts.TwoTower(torch.nn.Linear(6, 4), torch.nn.Linear(5, 4))
        >>> objective = dt.recipes.fastclip_v3(host, num_samples=100, epochs=10, steps_per_epoch=12, rho=2.0)
        >>> objective(torch.randn(8, 6), torch.randn(8, 5), index=torch.arange(8)).loss.backward()

    Source: arXiv 2407.01445 (FastCLIP).
    """
    schedule = _descending(gamma, epochs, steps_per_epoch)
    predictor = predictors.LearnableTemperature(tau_init, tau_min=tau_min, tau_max=tau_max)
    return Objective(host, predictor, _robust(host, rho, num_samples, schedule))
