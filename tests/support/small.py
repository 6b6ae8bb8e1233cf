"""Small models and data that several tests share."""

import torch
from torch import nn

import dro_temp as dt

N, D = 24, 5  # pairs in the data set, width of the inputs


def data(n: int = N, seed: int = 0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(n, D, generator=g, dtype=dtype)
    return images, images + 0.3 * torch.randn(n, D, generator=g, dtype=dtype)


def two_tower(seed: int = 0) -> dt.hosts.TwoTower:
    torch.manual_seed(seed)
    return dt.hosts.TwoTower(nn.Linear(D, 4), nn.Linear(D, 4))


PREDICTORS = {
    "constant": lambda: dt.ConstantTemperature(0.2),
    "learnable": lambda: dt.LearnableTemperature(0.2, tau_min=0.05, tau_max=1.0),
    "individual": lambda: dt.IndividualTemperature(
        N, tau_min=0.05, tau_max=1.0, update=dt.predictors.GradientUpdate(lr=0.05)
    ),
    "tempnet": lambda: dt.TempNet(4, tau_min=0.05, tau_max=1.0, prototypes=6, dropout=0.0),
}


def objective(
    predictor: str = "tempnet", gamma=0.5, rho: float = 0.5, estimator=None, **options
) -> dt.Objective:
    """Two towers in float64, the same weights at every call."""
    host = two_tower()
    torch.manual_seed(1)
    build = estimator or (lambda: dt.LogMovingAverage(N, gamma=gamma))
    return dt.Objective(
        host,
        {view: PREDICTORS[predictor]() for view in host.views},
        {view: dt.KLRobustLoss(rho, estimator=build()) for view in host.views},
        **options,
    ).double()


def optimizer(obj: dt.Objective, **options) -> dt.CompositionalOptimizer:
    return dt.CompositionalOptimizer(torch.optim.Adam(obj.param_groups(lr=0.01, tau_lr=0.02)), obj, **options)


def batches(count: int, size: int = 6, seed: int = 3, n: int = N) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=g)[:size] for _ in range(count)]


def train(obj, opt, index_batches, pairs=None):
    images, texts = pairs or data()
    for index in index_batches:
        obj(images[index], texts[index], index=index).loss.backward()
        opt.step()
        opt.zero_grad()


def assert_same_to_rounding(got: torch.Tensor, expected: torch.Tensor, digits: float, name: str = "") -> None:
    """Equal to `digits` times the largest entry of the tensor.

    A processor's order of additions leaves an error that grows with what is added, not one of a fixed size: a log u of
    40 is no better known than to 40 units in the last place of 1, and a momentum of 1e-4 is known far better than that.
    """
    size = expected.abs().masked_fill(expected.isinf(), 0.0).amax().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        got, expected, rtol=0, atol=digits * size, msg=lambda m: f"{name} (largest {size:.3g}): {m}"
    )


#: What twenty steps in another order of additions may make of float64: each rounds sums of some twenty terms, 20 eps =
#: 4e-15; and log u has its scores over a temperature of 0.1 and less, 10 to 20 times that.
TRAINED_APART = 20 * 20 * 20 * torch.finfo(torch.float64).eps


def assert_same_state(first: nn.Module, second: nn.Module, digits: float = 0.0) -> None:
    """States that are equal to so many digits of each tensor's largest entry; bit for bit if 0."""
    state = second.state_dict()
    for name, value in first.state_dict().items():
        assert_same_to_rounding(value, state[name], digits, name)
