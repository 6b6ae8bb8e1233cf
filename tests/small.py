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
        N, tau_min=0.05, tau_max=1.0, update=dt.GradientUpdate(lr=0.05)
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


def assert_same_state(first: nn.Module, second: nn.Module, atol: float = 0.0) -> None:
    state = second.state_dict()
    for name, value in first.state_dict().items():
        torch.testing.assert_close(
            value, state[name], rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )
